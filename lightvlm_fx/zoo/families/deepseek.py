"""DeepSeek-VL with one tower or two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from lightvlm_fx.zoo.parts import IMAGE, decoder, pixels, span, tower, vlm, without
from lightvlm_fx.zoo.recipe import Batch, Recipe


def deepseek_config(layers: int, **extra: Any) -> dict[str, Any]:
    return vlm(decoder(layers, "llama"), tower(32, 8, "siglip_vision_model"), image_token_id=IMAGE, **extra)


def hybrid_config(layers: int) -> dict[str, Any]:
    windows = {"output_channels": 16, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 48}
    high = without(tower(64, 8, "sam_vision_model", **windows), "intermediate_size")
    return deepseek_config(layers, high_res_vision_config=high)


def hybrid_picture(draw: Generator) -> Batch:
    return pixels(32, 32)(draw) | {"high_res_pixel_values": torch.randn(1, 3, 64, 64, generator=draw)}


FAMILIES = {
    "deepseek_vl": Recipe(deepseek_config, span(16), pixels(32, 32)),
    "deepseek_vl_hybrid": Recipe(hybrid_config, span(16), hybrid_picture),
}
