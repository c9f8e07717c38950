"""Granite's: Docling and Granite 4 Vision, whose tower feeds several layers of the decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from lightvlm_fx.zoo.parts import HIDDEN, IMAGE, PAD, VOCAB, decoder, marked, pixels, span, tiles, tower, vlm
from lightvlm_fx.zoo.recipe import Batch, Recipe


def docling_config(layers: int) -> dict[str, Any]:
    scales = {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0}
    text = decoder(layers, attention_multiplier=0.25, **scales)
    vision = tower(64, 8, out_hidden_size=HIDDEN, scale_factor=2, use_fine_route=False)
    return vlm(text, vision, image_token_id=IMAGE, pad_token_id=PAD)


def docling_picture(draw: Generator) -> Batch:
    return pixels(64, 64)(draw) | {"pixel_attention_mask": torch.ones(1, dtype=torch.bool)}


def granite4_config(layers: int) -> dict[str, Any]:
    bridge = {"vocab_size": VOCAB, "num_hidden_layers": 1, "intermediate_size": 48}
    vision = tower(32, 8, "clip_vision_model", hidden_size=64, projection_dim=32)
    inserted = {"deepstack_layer_map": [[-2, 0], [-1, 1]], "spatial_target_layers": [1, 2, 3, 3]}
    ids = {"image_token_index": IMAGE, "image_grid_pinpoints": [[64, 32], [32, 64], [64, 64]]}
    text = decoder(layers, attention_multiplier=0.25)
    return vlm(text, vision, qformer_config=bridge, downsample_rate="2/4", **inserted, **ids)


FAMILIES = {
    "granite_docling": Recipe(docling_config, marked(16), docling_picture, per_row=True),
    "granite4_vision": Recipe(granite4_config, span(4 + 4 * (2 + 1)), tiles(3, 32, (64, 32))),
}
