"""Many questions about pictures at once: rows of one batch, and beside each answer why there is none. Needs no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightvlm_fx.errors import InputError, shown
from lightvlm_fx.pictures import open_picture, picture_in
from lightvlm_fx.serving.engine import ServerEngine
from lightvlm_fx.serving.limits import Limits

Question = tuple[Any, Any]  # text, and a picture: a path, the bytes of a file, None, or a list of those
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came of one question. `error` says why there is no answer, else it is empty."""

    text: str = ""
    tokens: int = 0
    finish: str = ""  # "stop", or "length" where the answer was cut off
    error: str = ""


class Rows:
    """Answers questions `engine.rows` at a time, under `options` of generate(); `max_new_tokens` falls back to the engine's own, then 128.

    Of `limits` those of a prompt's tokens and a picture's pixels count. Raises InputError where an artifact has less room than
    `max_new_tokens`. For one thread at a time.
    """

    def __init__(self, engine: ServerEngine, *, limits: Limits | None = None, max_new_tokens: int | None = None, **options: Any) -> None:
        self.engine, self.limits = engine, limits or Limits()
        self.new = max_new_tokens or engine.usual or 128
        if engine.longest is not None and self.new > engine.longest:
            raise InputError(f"max_new_tokens is {self.new}, but the artifact has room for {engine.longest}; ask for less, or export again")
        self.options = {"do_sample": False} | options | {"max_new_tokens": self.new}
        self.pad = engine.pad

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """An answer for each question, in their order. Questions that cannot be asked (InputError) hold up no others."""
        out: dict[int, Answer] = {}
        alike: dict[Any, list[tuple[int, Inputs]]] = defaultdict(list)
        for at, (text, picture) in enumerate(questions):
            try:
                inputs = self._prepared(text, picture)
            except InputError as error:
                out[at] = Answer(error=str(error))
            else:
                alike[_kind(inputs)].append((at, inputs))
        for group in alike.values():
            most = self.engine.rows or len(group)
            for start in range(0, len(group), most):
                places, batch = zip(*group[start : start + most], strict=True)
                out.update(zip(places, self._answered(batch), strict=True))
        return [out[at] for at in range(len(questions))]

    def _prepared(self, text: Any, picture: Any) -> Inputs:
        if not isinstance(text, str):
            raise InputError(f"expected a question as text, got {shown(text)}")
        pictures = [self._opened(one) for one in (picture if isinstance(picture, list) else [] if picture is None else [picture])]
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
        inputs = self.engine.prepare([{"role": "user", "content": content}], pictures)
        length, room = inputs["input_ids"].shape[1], self.limits.prompt_tokens
        if self.engine.context is not None:
            room = min(room, self.engine.context - self.new)
        if length > room:
            raise InputError(f"the prompt has {length} tokens, at most {room} are taken; send less text, or fewer or smaller pictures")
        return inputs

    def _opened(self, picture: Any) -> Image.Image:
        if isinstance(picture, bytes):
            return picture_in(picture, "the picture", self.limits.picture_pixels)
        if isinstance(picture, str | Path):
            return open_picture(picture)
        raise InputError(f"expected a picture as a path or the bytes of its file, got {shown(picture, 80)}")

    def _answered(self, batch: Sequence[Inputs]) -> Iterator[Answer]:
        """Of inputs that may be rows of one batch. Where it is refused, each is asked alone: one of them may be at fault."""
        joined = _joined(batch, self.pad) if len(batch) > 1 else batch[0]
        try:
            tokens = self.engine.generate(joined, **self.options)
        except InputError as error:
            if len(batch) == 1:
                yield Answer(error=str(error))
                return
            for one in batch:
                yield from self._answered([one])
            return
        for row in tokens[:, joined["input_ids"].shape[1] :].tolist():
            end = next((at for at, token in enumerate(row) if token in self.engine.ends), None)
            said = row if end is None else row[: end + 1]
            yield Answer(self.engine.decode(said).strip(), len(said), "length" if end is None else "stop")


def _kind(inputs: Inputs) -> Any:
    """What inputs of one batch must have in common: all but the number of tokens and of pictures."""
    ids = inputs["input_ids"].shape
    if not all(hasattr(x, "shape") for x in inputs.values()):
        return id(inputs)  # of its own kind
    return tuple((name, x.dtype, "S" if x.shape == ids else tuple(x.shape[1:])) for name, x in sorted(inputs.items()))


def _joined(batch: Sequence[Inputs], pad: int) -> Inputs:
    """One batch of inputs of one row each: what has the shape of input_ids [1, S] is padded on the left, all else is joined."""
    width = max(inputs["input_ids"].shape[1] for inputs in batch)
    out: Inputs = {}
    for name, first in batch[0].items():
        arrays = [np.asarray(inputs[name]) for inputs in batch]
        if first.shape == batch[0]["input_ids"].shape:
            fill = pad if name == "input_ids" else 0
            arrays = [np.pad(x, ((0, 0), (width - x.shape[1], 0)), constant_values=fill) for x in arrays]
        out[name] = np.concatenate(arrays)
    return out
