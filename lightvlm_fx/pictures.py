"""Reading a user's picture, and asking about it. Needs no torch."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lightvlm_fx.errors import InputError, shown

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
UNSIGNED = 1  # a sample format


def open_picture(path: str | Path) -> Image.Image:
    """The picture at `path` as RGB, 8 bits a channel, turned as its EXIF says.

    Grey of 16 bits, of 32 bits without a sign and of floats in 0..1 is scaled to 0..255.
    Raises InputError naming the path where there is no regular file, no picture, one beyond Pillow's limit of pixels, or
    one whose numbers do not say what is white.
    """
    if not isinstance(path, str | PathLike):
        raise InputError(f"expected the path of a picture (PNG, JPEG, ...), got {path!r}")
    try:
        if not Path(path).is_file():  # a directory; a pipe would be waited for
            what = "no regular file" if Path(path).exists() else "no such file"
            raise InputError(f"{path}: {what}; give the path of a picture (PNG, JPEG, ...)")
        with Image.open(path) as picture:
            return _eight_bits(ImageOps.exif_transpose(picture), picture, path).convert("RGB")
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: too large a picture ({error}); scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS") from error
    except Exception as error:  # Pillow's readers raise whatever their parsers do: struct.error, SyntaxError, zlib.error, ...
        raise InputError(f"{path!s}: not a picture that Pillow can read ({type(error).__name__}: {error})") from error


def _eight_bits(picture: Image.Image, file: Image.Image, path: str | Path) -> Image.Image:
    """`picture` of `file` with 8 bits a channel, which Pillow's convert() clips where there is one channel of more."""
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    tags: Any = getattr(file, "tag_v2", {})
    unsigned = (tags.get(SAMPLE_FORMAT) or (UNSIGNED,))[0] == UNSIGNED
    values = np.asarray(picture)
    if picture.mode == "F":
        white: float = 1
    elif picture.mode.startswith("I;16") or file.format in ("PNG", "PPM"):  # which older releases of Pillow open as "I"
        white = 2 ** tags.get(BITS, (16,))[0] - 1
    elif file.format == "TIFF" and unsigned:
        values, white = values.astype(np.uint32), 2**32 - 1
    else:
        white = 0
    if not white or not ((values >= 0) & (values <= white)).all():
        raise InputError(
            f"{path}: its numbers go from {values.min()} to {values.max()} ({picture.mode!r} in Pillow), and nothing says which is white; "
            "save it with 8 or 16 bits a channel, or as floats from 0 to 1"
        )
    share = values / white
    if tags.get(PHOTOMETRIC) == 0:  # white is zero: Pillow turns it only for up to 8 bits
        share = 1 - share
    return Image.fromarray(np.round(share * 255).astype(np.uint8))


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
