"""LFM2-VL and LFM3-VL: decoders of convolutions and attention by turns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from lightvlm_fx.zoo.parts import IMAGE, QWEN_IDS, alternate, decoder, flat_tower, grid, marked, no_kinds, tower, vlm, without
from lightvlm_fx.zoo.recipe import Batch, Recipe


def lfm2_config(layers: int) -> dict[str, Any]:
    text = decoder(layers, "lfm2", layer_types=alternate(layers, "conv"), block_ff_dim=96)
    vision = without(tower(64, 8, "siglip2_vision_model", num_patches=64, vision_use_head=False), "image_size")
    return vlm(text, vision, image_token_id=IMAGE, projector_hidden_size=64)


def lfm2_picture(draw: Generator) -> Batch:
    mask = torch.ones(1, 48, dtype=torch.long)
    flat = torch.randn(1, 48, 3 * 8 * 8, generator=draw)
    return {"pixel_values": flat, "spatial_shapes": torch.tensor([[6, 8]]), "pixel_attention_mask": mask}


def lfm3_config(layers: int) -> dict[str, Any]:
    text = decoder(layers, "lfm3", layer_types=alternate(layers, "conv"), sliding_window=16)
    vision = flat_tower(num_key_value_heads=1, temporal_patch_size=2)
    return vlm(text, vision, projector_hidden_size=64, **QWEN_IDS)


FAMILIES = {
    "lfm2_vl": Recipe(lfm2_config, marked(12), lfm2_picture),
    "lfm3_vl": grid(lfm3_config, finish=no_kinds),
}
