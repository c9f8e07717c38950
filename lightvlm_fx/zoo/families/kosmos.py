"""Kosmos-2: query tokens between tower and decoder."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import HIDDEN, IMAGE, SOME_PICTURE, TEXT_IDS, mark, marked, pixels, tower, vlm
from lightvlm_fx.zoo.recipe import Recipe


def kosmos_config(layers: int) -> dict[str, Any]:
    text = {"embed_dim": HIDDEN, "layers": layers, "ffn_dim": 96, "attention_heads": 4}
    return vlm(text | TEXT_IDS | {"max_position_embeddings": 512}, tower(32, 8), latent_query_num=9)


FAMILIES = {
    "kosmos-2": Recipe(
        kosmos_config,
        marked(9),
        pixels(32, 32),
        mark("image_embeds_position_mask", IMAGE),
        caveat=SOME_PICTURE,
    ),
}
