"""Fuyu: patches go to the decoder without a tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from lightvlm_fx.zoo.parts import BOS, BREAK, IMAGE, decoder
from lightvlm_fx.zoo.recipe import Batch, Recipe


def fuyu_config(layers: int) -> dict[str, Any]:
    return {
        "text_config": decoder(layers, "persimmon"),
        "image_size": 32,
        "patch_size": 8,
        "image_token_id": IMAGE,
    }


def fuyu_picture(draw: Generator) -> Batch:
    return {"pixel_values": torch.randn(1, 12, 3 * 8 * 8, generator=draw)}


FAMILIES = {
    "fuyu": Recipe(fuyu_config, (*((IMAGE,) * 4 + (BREAK,)) * 3, BOS), fuyu_picture),
}
