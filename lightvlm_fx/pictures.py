"""Reading a user's picture, and asking about it. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from lightvlm_fx.errors import InputError, shown


def open_picture(path: str | Path) -> Image.Image:
    """The picture at `path` as RGB. Raises InputError naming the path where it is missing or no picture."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of a picture (PNG, JPEG, ...)") from None
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path}: not a picture that Pillow can read ({error})") from None


def prompt(processor: Any, question: str, pictures: int = 1) -> str:
    """A chat prompt with `pictures` pictures before the question."""
    content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def inputs_of(processor: Any, question: str, pictures: list[Image.Image], tensors: str) -> dict[str, Any]:
    """What `processor` makes of a question about pictures, as arrays of the kind `tensors` ("np", "pt").

    Raises InputError where it does not take them, as where the question holds a placeholder of a picture.
    """
    try:
        return dict(processor(images=pictures or None, text=[prompt(processor, question, len(pictures))], return_tensors=tensors))
    except ImportError:
        raise
    except Exception as error:  # each processor has its own way to fail
        raise InputError(
            f"the model's processor does not take the question {shown(question)} with {len(pictures)} pictures "
            f"({type(error).__name__}: {error}); leave placeholders such as <image> out of the question: each picture gets its own"
        ) from error
