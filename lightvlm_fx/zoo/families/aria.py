"""Aria: a decoder of experts, as many queries as the picture's patches call for."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import IMAGE, decoder, pixels, span, tower, vlm
from lightvlm_fx.zoo.recipe import Recipe


def aria_config(layers: int) -> dict[str, Any]:
    text = decoder(layers, "aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    queries = {"projector_patch_to_query_dict": {64: 16}}
    return vlm(text, tower(64, 8, "idefics3_vision"), image_token_index=IMAGE, **queries)


FAMILIES = {
    "aria": Recipe(aria_config, span(16), pixels(64, 64, mask="pixel_mask")),
}
