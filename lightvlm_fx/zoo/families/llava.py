"""LLaVA and its successors: a CLIP or SigLIP tower, whole pictures or tiles of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from lightvlm_fx.zoo.parts import IMAGE, VIDEO, decoder, pixels, span, tiles, tower, vlm
from lightvlm_fx.zoo.recipe import Batch, Config, Recipe


def llava_config(layers: int, **extra: Any) -> dict[str, Any]:
    vision = tower(48, 8, "clip_vision_model", projection_dim=32)
    return vlm(decoder(layers, "llama"), vision, image_token_index=IMAGE, image_seq_length=36, **extra)


def tiled_config(layers: int, text: str, vision: str, **extra: Any) -> dict[str, Any]:
    ids = {"image_token_index": IMAGE, "image_grid_pinpoints": [[48, 24], [24, 48], [48, 48]]}
    return vlm(decoder(layers, text), tower(24, 8, vision), **ids, **extra)


def video_llava_config(layers: int) -> dict[str, Any]:
    vision = tower(32, 8, "clip_vision_model", projection_dim=32)
    return vlm(decoder(layers, "llama"), vision, image_token_index=IMAGE, video_token_index=VIDEO)


def video_llava_picture(draw: Generator) -> Batch:
    return {"pixel_values_images": pixels(32, 32)(draw)["pixel_values"]}


def tiled(config: Config, **fixed: Tensor) -> Recipe:
    """A family whose picture is a small whole one of 9 tokens and 6 rows of 3 with a learned newline."""
    return Recipe(config, span(9 + 6 * (3 + 1)), tiles(3, 24, (48, 24), **fixed))


FAMILIES = {
    "llava": Recipe(llava_config, span(36), pixels(48, 48)),
    "vipllava": Recipe(lambda n: llava_config(n, vision_feature_layers=[-2, -1]), span(36), pixels(48, 48)),
    "llava_next": tiled(lambda n: tiled_config(n, "llama", "clip_vision_model")),
    "llava_next_video": tiled(lambda n: tiled_config(n, "llama", "clip_vision_model", video_token_index=VIDEO)),
    "llava_onevision": tiled(
        lambda n: tiled_config(n, "qwen2", "siglip_vision_model", video_token_index=VIDEO),
        batch_num_images=torch.ones(1, dtype=torch.long),
    ),
    "video_llava": Recipe(video_llava_config, span(16), video_llava_picture),
}
