"""An example batch for a bucket, where the user gives only a processor."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from lightvlm_fx.errors import InputError
from lightvlm_fx.pictures import prompt

SIDE = 448  # of the picture where the processor names no size


def example(
    processor: Any, pictures: list[Image.Image] | None = None, question: str = "describe the picture .", *, rows: int = 1, images: int = 1
) -> dict[str, Any]:
    """A processor's output for `rows` equal rows: `pictures` (default: `images` plain ones of the size it prefers), a question.

    Raises InputError for a processor without a chat template.
    """
    pictures = pictures or [_picture(processor)] * images
    if not hasattr(processor, "apply_chat_template") or not getattr(processor, "chat_template", None):
        raise InputError("the processor has no chat template to make an example prompt with; pass inputs= instead")
    text = prompt(processor, question, len(pictures))
    return dict(processor(images=[pictures] * rows, text=[text] * rows, return_tensors="pt"))


def _picture(processor: Any) -> Image.Image:
    size = dict(getattr(processor.image_processor, "size", None) or {})
    height = size.get("height") or size.get("shortest_edge") or SIDE
    width = size.get("width") or size.get("shortest_edge") or SIDE
    if height > 4096:  # a count of pixels, not a side
        height = width = SIDE
    ramp = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    return Image.fromarray(ramp)
