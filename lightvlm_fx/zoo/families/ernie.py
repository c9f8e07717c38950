"""ERNIE 4.5 VL, and PaddleOCR-VL, which has its decoder."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import BOI, EOI, IMAGE, KINDS, MEDIA_IDS, QWEN_IDS, decoder, grid, grid_tower, mark, mrope, tower, vlm, without
from lightvlm_fx.zoo.recipe import Batch


def ernie_config(layers: int) -> dict[str, Any]:
    experts = {
        "moe_intermediate_size": [32, 32],
        "moe_k": 2,
        "moe_num_experts": 4,
        "moe_num_shared_experts": 1,
    }
    kinds = ["sparse" if i else "dense" for i in range(layers)]
    text = decoder(layers, rope_parameters=mrope(3, 3, 2), mlp_layer_types=kinds, **experts)
    vision = without(grid_tower(temporal_merge_size=2), "temporal_patch_size", "out_hidden_size")
    videos = {"video_start_token_id": 10, "video_end_token_id": 11}
    return vlm(text, vision, image_start_token_id=BOI, image_end_token_id=EOI, **MEDIA_IDS, **videos)


def ernie_finish(batch: Batch) -> Batch:
    return KINDS(batch) | mark("moe_mm_token_type_ids", IMAGE, BOI, EOI)(batch)


def paddle_config(layers: int) -> dict[str, Any]:
    return vlm(decoder(layers, rope_parameters=mrope(2, 3, 3)), tower(64, 8), **QWEN_IDS)


FAMILIES = {
    "ernie4_5_vl_moe": grid(ernie_config, 3 * 8 * 8, finish=ernie_finish),
    "paddleocr_vl": grid(paddle_config, 3, 8, 8),
}
