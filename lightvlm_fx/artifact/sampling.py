"""From logits to the next token, under the names that transformers' generate() gives its options."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightvlm_fx.errors import InputError, NotSupported

Array = NDArray[Any]
GREEDY_ONLY = ("num_beams", "num_return_sequences", "num_beam_groups", "penalty_alpha", "assistant_model", "constraints")


def whole(name: str, value: Any, least: int) -> int:
    """`value` as an int. Raises InputError where it is no whole number, `least` or more."""
    found = value.item() if getattr(value, "shape", None) == () else value  # NumPy's or torch's
    if isinstance(found, bool) or not isinstance(found, int):
        raise InputError(f"{name} must be a whole number, got {value!r}")
    if found < least:
        raise InputError(f"{name} must be at least {least}, got {found}")
    return found


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are transformers'; `seed` makes sampling repeatable."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("top_k", "seed"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise InputError(f"{name} must be a whole number, 0 or more, got {value!r}")
        for name in ("temperature", "top_p", "repetition_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{name} must be a finite number, got {value!r}")
        for wrong, message in (
            (self.temperature <= 0, f"temperature must be above 0, got {self.temperature}; greedy is do_sample=False"),
            (not 0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}"),
            (self.repetition_penalty <= 0, f"repetition_penalty must be above 0, got {self.repetition_penalty}"),
        ):
            if wrong:
                raise InputError(message)

    @staticmethod
    def of(options: dict[str, Any]) -> Sampling:
        """Raises NotSupported for an option of generate() that an artifact does not have, InputError for a bad value."""
        for name in GREEDY_ONLY:
            if options.get(name) not in (None, 1):
                raise NotSupported(f"{name}={options[name]!r}: an artifact answers greedily or by sampling, one sequence a row")
        known = {f.name for f in fields(Sampling)}
        unknown = sorted(set(options) - known - set(GREEDY_ONLY))
        if unknown:
            raise NotSupported(f"generate() of an artifact does not know {', '.join(unknown)}; it knows {', '.join(sorted(known))}")
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in options.items() if k in known and v is not None}
        return Sampling(**plain)

    def start(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def penalised(self, logits: Array, before: Array) -> Array:
        """float32 scores [B, V] of logits [B, V], lower for tokens of `before` [B, S] where there is a penalty for repeating them."""
        scores = logits.astype(np.float32)
        if self.repetition_penalty != 1.0:
            less = np.where(scores < 0, scores * self.repetition_penalty, scores / self.repetition_penalty)
            said = np.zeros(scores.shape, bool)
            for row, tokens in zip(said, before, strict=True):
                row[tokens[tokens < len(row)]] = True  # placeholders of pictures may lie outside the vocabulary
            scores = np.where(said, less, scores)
        return scores

    def choose(self, logits: Array, before: Array, random: np.random.Generator) -> Array:
        """Next tokens [B] from logits [B, V]; `before` [B, S] are the tokens so far."""
        scores = self.penalised(logits, before)
        if not self.do_sample:
            return scores.argmax(-1)
        scores = scores / self.temperature
        if 0 < self.top_k < scores.shape[1]:
            least = np.partition(scores, -self.top_k, axis=1)[:, -self.top_k][:, None]
            scores = np.where(scores < least, -np.inf, scores)
        if self.top_p < 1:
            order = np.argsort(scores, axis=1)  # rising, as transformers does it: what adds up to 1 - top_p goes
            total = np.cumsum(_softmax(np.take_along_axis(scores, order, 1)), 1)
            out = total <= 1 - self.top_p
            out[:, -1] = False
            dropped = np.zeros_like(out)
            np.put_along_axis(dropped, order, out, 1)
            scores = np.where(dropped, -np.inf, scores)
        probabilities = _softmax(scores).astype(np.float64)
        edges = np.cumsum(probabilities / probabilities.sum(1, keepdims=True), 1)
        picked = (edges <= random.random((len(edges), 1))).sum(1)
        return np.minimum(picked, scores.shape[1] - 1)


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)
