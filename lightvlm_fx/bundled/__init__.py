"""The model in the box: a small trained LLaVA, its data generator, its training, and a few pictures.

model, processor = lightvlm_fx.bundled.load()
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

HOME = Path(__file__).parent / "model"
PICTURES = Path(__file__).parent / "pictures"


def load() -> tuple[Any, Any]:
    """The bundled model (float32, eval mode) and its processor, from the package's own files."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(HOME, dtype=torch.float32, local_files_only=True)
    processor = AutoProcessor.from_pretrained(HOME, local_files_only=True)
    return model.eval(), processor
