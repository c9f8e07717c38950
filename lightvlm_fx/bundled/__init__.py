"""The model in the box: a small trained LLaVA, its data generator, its training, and a few pictures.

model, processor = lightvlm_fx.bundled.load()
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightvlm_fx.errors import InputError

HOME = Path(__file__).parent / "model"
PICTURES = Path(__file__).parent / "pictures"


def load(pixels: int | None = None) -> tuple[Any, Any]:
    """The bundled model (float32, eval mode) and its processor, from the package's own files.

    With `pixels`, pictures come at so many pixels a side in place of 96, and as fewer visual tokens: the plain baseline, downsampling.
    The tower interpolates its position table. Raises InputError where they are no multiple of a patch's 8.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(HOME, dtype=torch.float32, local_files_only=True)
    processor = AutoProcessor.from_pretrained(HOME, local_files_only=True)
    if pixels is not None:
        patch = model.config.vision_config.patch_size
        if pixels < patch or pixels % patch:
            raise InputError(f"pixels={pixels}: the bundled model takes pictures of a multiple of {patch} pixels a side")
        processor.image_processor.size = processor.image_processor.crop_size = {"height": pixels, "width": pixels}
        model.config.image_seq_length = (pixels // patch) ** 2
        model.get_encoder(modality="image").register_forward_pre_hook(_interpolating, with_kwargs=True)
    return model.eval(), processor


def _interpolating(tower: Any, args: Any, given: dict[str, Any]) -> Any:
    return args, given | {"interpolate_pos_encoding": True}
