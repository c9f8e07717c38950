"""Llama 4, and Llama 3.2 Vision (mllama), whose pictures reach the decoder by cross-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from lightvlm_fx.zoo.parts import BOI, EOI, IMAGE, decoder, plain, seen, span, tower, vlm, without
from lightvlm_fx.zoo.recipe import Batch, Recipe


def llama4_config(layers: int) -> dict[str, Any]:
    experts = {"intermediate_size_mlp": 96, "num_local_experts": 4, "num_experts_per_tok": 1}
    text = decoder(layers, attention_chunk_size=64, no_rope_layer_interval=2, **experts)
    widths = {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
    vision = tower(32, 4, **widths, intermediate_size=128)  # 128: four shuffled patches of 32
    return vlm(text, vision, image_token_index=IMAGE, boi_token_index=BOI, eoi_token_index=EOI)


def mllama_config(layers: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = decoder(layers, cross_attention_layers=list(range(1, layers, 2)), rope_parameters=rope)
    shapes = {"max_num_tiles": 2, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}
    depth = {"num_global_layers": 1, "intermediate_layers_indices": [0], "vision_output_dim": 64}
    vision = without(tower(32, 8, attention_heads=2, **depth, **shapes), "num_attention_heads")
    return vlm(text, vision, image_token_index=IMAGE)


def mllama_picture(draw: Generator) -> Batch:
    tile_pair = torch.randn(1, 2, 3, 32, 32, generator=draw)
    ratio = {"aspect_ratio_ids": torch.tensor([2]), "aspect_ratio_mask": torch.ones(1, 2, dtype=torch.long)}
    return {"pixel_values": tile_pair} | ratio


def mllama_finish(batch: Batch) -> Batch:
    if "pixel_values" not in batch:
        return {}
    return {"cross_attention_mask": seen(batch).long()[..., None].expand(-1, -1, -1, 2)}


FAMILIES = {
    "llama4": plain(llama4_config, 32),
    "mllama": Recipe(
        mllama_config,
        span(1),
        mllama_picture,
        mllama_finish,
        per_row=True,
        caveat="a token before the first picture averages over all picture slots of the batch",
    ),
}
