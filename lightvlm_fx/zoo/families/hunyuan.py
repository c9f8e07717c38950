"""Hunyuan-VL and Hy 4 VL: a placeholder closes each row of a picture."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import (
    BOI,
    BREAK,
    EOI,
    HIDDEN,
    IMAGE,
    INDEXER,
    KINDS,
    MEDIA_IDS,
    decoder,
    flat_tower,
    latent,
    marked,
    mrope,
    patches,
    vlm,
)
from lightvlm_fx.zoo.recipe import Recipe


def hunyuan_config(layers: int) -> dict[str, Any]:
    sizes = {"max_image_size": 64, "min_image_size": 32, "img_max_token_num": 64}
    vision = flat_tower(out_hidden_size=HIDDEN, text_hidden_size=HIDDEN, temporal_patch_size=1, **sizes)
    ids = {"image_token_id": IMAGE, "im_start_id": BOI, "im_end_id": EOI, "im_newline_id": BREAK}
    return vlm(decoder(layers, rope_parameters=mrope(2, 2, 2, 2)), vision, **ids)


def hy_v4_config(layers: int) -> dict[str, Any]:
    text = latent(layers, n_routed_experts=4, rope_parameters=mrope(2, 1, 1), **INDEXER)
    return vlm(text, flat_tower(out_hidden_size=HIDDEN, max_image_size=64), **MEDIA_IDS)


FAMILIES = {
    "hunyuan_vl": Recipe(
        hunyuan_config,
        marked(3 * (4 + 1) + 2),
        patches(6, 8, 3 * 8 * 8),
        KINDS,
        caveat="positions count the pictures of the whole batch, so a row depends on the rows before it",
    ),
    "hy_v4_vl": Recipe(hy_v4_config, marked(3 * (4 + 1)), patches(6, 8, 3 * 8 * 8), KINDS),
}
