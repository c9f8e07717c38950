"""`lightvlm bench size`: the graph that serves every size beside one that was made for the size, in turns in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lightvlm_fx.bench.decode import with_entries
from lightvlm_fx.bench.prefill import Shape, build, example, synchronise
from lightvlm_fx.compat import given_cache
from lightvlm_fx.schedule import Schedule


@dataclass
class Sized:
    """One compiled model: seconds of its prefills and of its steps."""

    name: str
    first_s: float = 0.0  # first answer, compiling included
    prefill: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)


def compare(
    shape: Shape, schedule: Schedule, *, text: int = 64, steps: int = 8, repeats: int = 7, dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu", tell: Callable[[str], None] = lambda what: None,
) -> list[Sized]:  # fmt: skip
    """Both models over the same prompt; a step is the mean of `steps` after a prompt."""
    import lightvlm_fx as lightvlm

    model = build(shape, device, dtype)
    inputs = example(model, shape, 1, text, device, dtype)
    token = torch.full((1, 1), 10, device=device)
    made = [Sized("for every size"), Sized("for this size")]
    fasts = [lightvlm.compile(model, schedule, static=static) for static in (False, True)]

    def turn(fast: Any) -> tuple[float, float]:
        synchronise(device)
        start = time.perf_counter()
        given = with_entries(fast, given_cache(fast(**inputs, use_cache=True, logits_to_keep=1)))
        synchronise(device)
        prompt = time.perf_counter()
        for _ in range(2):  # not counted: buffers grow at the first
            fast(input_ids=token, **given)
        synchronise(device)
        settled = time.perf_counter()
        for _ in range(steps):
            fast(input_ids=token, **given)
        synchronise(device)
        return prompt - start, (time.perf_counter() - settled) / steps

    with torch.inference_mode():
        for variant, fast in zip(made, fasts, strict=True):
            tell(f"compiling: {variant.name}")
            start = time.perf_counter()
            turn(fast)
            variant.first_s = time.perf_counter() - start
            turn(fast)
        for number in range(repeats):
            tell(f"measuring, turn {number + 1} of {repeats}")
            for variant, fast in zip(made, fasts, strict=True):
                prefill, step = turn(fast)
                variant.prefill.append(prefill)
                variant.step.append(step)
    return made


def ratio(made: list[Sized], what: str) -> float:
    """Median time of the graph for every size over that of the one made for this size."""
    every, this = (statistics.median(getattr(variant, what)) for variant in made)
    return every / this
