"""Reading a user's picture, and asking about it. Needs no torch."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from lightvlm_fx.errors import InputError, shown

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
UNSIGNED = 1  # a sample format
SAFE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # of strangers: no format whose reader starts another program, as EPS does


class TooLarge(InputError):
    """A picture with more pixels than are taken."""


def open_picture(path: str | Path) -> Image.Image:
    """The picture at `path` as RGB, 8 bits a channel, turned as its EXIF says.

    Grey of 16 bits, of 32 bits without a sign and of floats in 0..1 is scaled to 0..255.
    Raises InputError naming the path where there is no regular file, no picture, one beyond Pillow's limit of pixels, or
    one whose numbers do not say what is white.
    """
    if not isinstance(path, str | PathLike):
        raise InputError(f"expected the path of a picture (PNG, JPEG, ...), got {path!r}")
    try:
        what = "" if Path(path).is_file() else "no regular file" if Path(path).exists() else "no such file"
    except (OSError, ValueError) as error:  # a name that is too long
        raise InputError(f"{path}: not a picture that Pillow can read ({type(error).__name__}: {error})") from error
    if what:  # a directory; a pipe would be waited for
        raise InputError(f"{path}: {what}; give the path of a picture (PNG, JPEG, ...)")
    return _read(path, str(path))


def picture_in(data: bytes, name: str, most_pixels: int) -> Image.Image:
    """The picture that `data` holds, in one of the formats SAFE, as `open_picture` reads it; messages call it `name`.

    Raises TooLarge, before any pixel is read, where there are more than `most_pixels`, and InputError where it is no such picture.
    """
    return _read(io.BytesIO(data), name, SAFE, most_pixels)


def _read(file: str | Path | BinaryIO, name: str, formats: Sequence[str] | None = None, most_pixels: int | None = None) -> Image.Image:
    try:
        with Image.open(file, formats=formats) as picture:
            width, height = picture.size
            if most_pixels is not None and width * height > most_pixels:
                raise TooLarge(f"{name}: {width} x {height} pixels, above the limit of {most_pixels}; scale it down")
            return _eight_bits(ImageOps.exif_transpose(picture), picture, name).convert("RGB")
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"{name}: too large a picture ({error}); scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS") from error
    except Exception as error:  # Pillow's readers raise whatever their parsers do: struct.error, SyntaxError, zlib.error, ...
        raise InputError(f"{name}: not a picture that Pillow can read ({type(error).__name__}: {error})") from error


def _eight_bits(picture: Image.Image, file: Image.Image, name: str) -> Image.Image:
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
            f"{name}: its numbers go from {values.min()} to {values.max()} ({picture.mode!r} in Pillow), and nothing says which is white; "
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
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
    return inputs_of_chat(processor, [{"role": "user", "content": content}], pictures, tensors)


def inputs_of_chat(processor: Any, chat: list[dict[str, Any]], pictures: list[Image.Image], tensors: str) -> dict[str, Any]:
    """The same of a whole chat, as chat templates take it, whose parts `{"type": "image"}` stand for the pictures in their order."""
    token = getattr(processor, "image_token", None)
    try:
        if token and any(token in part.get("text", "") for turn in chat for part in turn["content"] if isinstance(part, dict)):
            raise ValueError(f"{token} stands in it")  # older transformers take it where no picture comes
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        return dict(processor(images=pictures or None, text=[text], return_tensors=tensors))
    except ImportError:
        raise
    except Exception as error:  # each processor has its own way to fail
        asked = [part["text"] for part in chat[-1]["content"] if part["type"] == "text"]
        raise InputError(
            f"the model's processor does not take the question {shown(' '.join(asked))} with {len(pictures)} pictures "
            f"({type(error).__name__}: {error}); leave placeholders such as <image> out of the question: each picture gets its own"
        ) from error


def processor_of(vlm: Any) -> Any:
    """The processor of an artifact that was loaded, from the files that its manifest lists. Raises InputError where it has none."""
    from transformers import AutoProcessor

    if not {"processor_config.json", "preprocessor_config.json"} & set(vlm.manifest["files"]):
        folder = str(vlm.folder)
        raise InputError(f"{folder} was exported without a processor; call lightvlm.load({folder!r}).generate(...) with arrays")
    with tempfile.TemporaryDirectory() as listed:  # of the folder itself, transformers would read what no manifest lists, too
        return AutoProcessor.from_pretrained(vlm.files.copied(Path(listed)))
