"""MiniCPM-V and its OCR: the decoder of Qwen3.5, pictures as one strip of patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from lightvlm_fx.zoo.families.qwen import qwen3_5_text
from lightvlm_fx.zoo.parts import BOI, BREAK, EOI, KINDS, MEDIA_IDS, marked, tower, vlm
from lightvlm_fx.zoo.recipe import Batch, Picture, Recipe


def minicpm_config(layers: int, **extra: Any) -> dict[str, Any]:
    text = qwen3_5_text(layers, model_type="qwen3_5_text")
    vision = tower(64, 8, insert_layer_id=1, window_kernel_size=[2, 2])
    return vlm(text, vision, insert_layer_id=1, **MEDIA_IDS, **extra)


def minicpm4_7_config(layers: int) -> dict[str, Any]:
    slices = {"slice_start_id": 10, "slice_end_id": 11, "newline_id": BREAK}
    return minicpm_config(layers, image_size=64, image_start_id=BOI, image_end_id=EOI, **slices)


def strip(height: int, width: int) -> Picture:
    """A picture as patches of 8 x 8 in one row; the pictures of a batch follow each other in that row."""

    def picture(draw: Generator) -> Batch:
        row = torch.randn(1, 3, 8, 8 * height * width, generator=draw)
        return {"pixel_values": row, "target_sizes": torch.tensor([[height, width]])}

    return picture


def one_strip(batch: Batch) -> Batch:
    if "pixel_values" not in batch:
        return {}
    return {"pixel_values": torch.cat(batch["pixel_values"].unbind(), dim=-1)[None]}


FAMILIES = {
    "minicpmv4_6": Recipe(minicpm_config, marked(9), strip(12, 12), one_strip),
    "minicpmv4_7": Recipe(minicpm4_7_config, marked(9), strip(12, 12), lambda batch: KINDS(batch) | one_strip(batch)),
    "minicpm_ocr": Recipe(minicpm_config, marked(12), strip(6, 8), one_strip),
}
