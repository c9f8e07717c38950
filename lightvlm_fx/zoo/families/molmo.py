"""Molmo 2: patches pooled by attention, four to a token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from lightvlm_fx.zoo.parts import BOI, EOI, HIDDEN, IMAGE, decoder, mark, marked, tower, vlm
from lightvlm_fx.zoo.recipe import Batch, Recipe


def molmo2_config(layers: int) -> dict[str, Any]:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 32}
    text = decoder(layers, additional_vocab_size=8)
    vision = tower(48, 8, **heads, num_position_embeddings=36) | {"image_size": [48, 48]}
    adapter = heads | {"vision_feature_layer": [-1, -2], "intermediate_size": 48, "text_hidden_size": HIDDEN}
    frames = {"frame_start_token_id": 11, "frame_end_token_id": 12}
    ids = {"image_patch_id": IMAGE, "image_start_token_id": BOI, "image_end_token_id": EOI}
    return vlm(text, vision, adapter_config=adapter, low_res_image_start_token_id=10, **ids, **frames)


def molmo2_picture(draw: Generator) -> Batch:
    pooled = torch.arange(36).view(3, 2, 3, 2).transpose(1, 2).reshape(9, 4)
    counts = {"image_grids": torch.tensor([[3, 3, 0, 0]]), "image_num_crops": torch.tensor([1])}
    return {"pixel_values": torch.randn(1, 36, 192, generator=draw), "image_token_pooling": pooled} | counts


def molmo2_finish(batch: Batch) -> Batch:
    kinds = mark("mm_token_type_ids", IMAGE, BOI, EOI)(batch)
    if "pixel_values" not in batch:
        return kinds
    first = 36 * torch.arange(len(batch["pixel_values"])).repeat_interleave(9)
    return kinds | {"image_token_pooling": batch["image_token_pooling"] + first[:, None]}


FAMILIES = {
    "molmo2": Recipe(molmo2_config, marked(9), molmo2_picture, molmo2_finish),
}
