"""`lightvlm bench decode`: what a generated token costs, as the answer gets longer.

A step of each variant is timed with caches of several lengths, in turns, and whole answers are integrated from
that: 4096 steps of an eager model would take hours on a CPU. Variants: the model's own DynamicCache, eager; a
StaticCache of the full length with torch.compile; each schedule compiled. Weights and cache contents are random.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from lightvlm_fx.bench.prefill import Shape, build, example, synchronise
from lightvlm_fx.compat import cache_argument, given_cache
from lightvlm_fx.exporters.torch_compile import compiled_graphs
from lightvlm_fx.schedule import Schedule

WARM = 3  # untimed steps before each measurement


@dataclass
class Decoding:
    """One way to decode. `at(n)` prepares a cache as it is after `n` new tokens and returns one step of it."""

    name: str
    at: Callable[[int], Callable[[], Any]]
    cache_bytes: Callable[[], int]
    points: tuple[int, ...]  # numbers of new tokens at which a step is timed
    seconds: dict[int, list[float]] = field(default_factory=dict)
    graphs: int = 0  # compiled while steps were timed
    peak: int = 0

    def step(self, new: int) -> float:
        """Seconds of a step after `new` tokens, interpolated between the points."""
        points = sorted(self.seconds)
        times = [statistics.median(self.seconds[p]) for p in points]
        if new <= points[0] or len(points) == 1:
            return times[0]
        for (a, ta), (b, tb) in zip(zip(points, times, strict=True), list(zip(points, times, strict=True))[1:], strict=False):
            if new <= b:
                return ta + (tb - ta) * (new - a) / (b - a)
        return times[-1]

    def answer(self, new: int) -> float:
        """Seconds for `new` tokens after the prompt."""
        return sum(self.step(i) for i in range(new))


def _bytes(tensors: list[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def decode(
    shape: Shape, schedules: dict[str, Schedule], *, lengths: tuple[int, ...] = (64, 1024, 4096), batch: int = 1, text: int = 64,
    repeats: int = 7, backend: str = "inductor", dtype: torch.dtype = torch.bfloat16, device: str = "cpu",
    prepack: bool = False, tell: Callable[[str], None] = lambda what: None,
) -> list[Decoding]:  # fmt: skip
    """Time steps of every variant after 0 to the longest of `lengths` new tokens; with `prepack` also those with packed weights."""
    import lightvlm_fx as lightvlm

    model = build(shape, device, dtype)
    points = tuple(sorted({0, *lengths}))
    prompt = shape.visual + text
    with torch.inference_mode():
        variants = [eager(model, prompt, batch, points), static(model, prompt, batch, max(points), backend)]
        inputs = example(model, shape, batch, text, device, dtype)
        for packed in (False, True)[: 1 + prepack]:
            for name, schedule in schedules.items():
                tell(f"prefill and compiling: {name}")
                fast = lightvlm.compile(model, schedule, backend=backend, prepack=packed)
                variants.append(compiled(fast, name + ", packed" * packed, schedule, inputs, points))
        for variant in variants:
            for point in variant.points:
                tell(f"warming up: {variant.name}, {point} new tokens")
                _timed(variant, point, 1, device)
        for turn in range(repeats):
            tell(f"measuring, turn {turn + 1} of {repeats}")
            for variant in variants:
                before = compiled_graphs()
                for point in variant.points:
                    variant.seconds.setdefault(point, []).append(_timed(variant, point, 3, device))
                variant.graphs += compiled_graphs() - before
    return variants


def _timed(variant: Decoding, point: int, steps: int, device: str) -> float:
    step = variant.at(point)
    for _ in range(WARM):
        step()
    synchronise(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise(device)
    variant.peak = max(variant.peak, variant.cache_bytes())
    return (time.perf_counter() - start) / steps


def _token(model: Any, batch: int) -> Tensor:
    return torch.full((batch, 1), 10, device=model.device)


def with_entries(model: Any, cache: Any) -> dict[str, Any]:
    """What a call of `model` gets that is to go on from `cache`."""
    return {cache_argument(model.forward): cache, "use_cache": True}


def _fill(model: Any, cache: Any, batch: int, tokens: int) -> None:
    config = model.config.text_config
    width = config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        keys, values = (torch.randn(batch, config.num_key_value_heads, tokens, width, dtype=model.dtype, device=model.device) for _ in "kv")
        cache.update(keys, values, layer)


def eager(model: Any, prompt: int, batch: int, points: tuple[int, ...]) -> Decoding:
    held: list[Any] = [None]

    def at(new: int) -> Callable[[], Any]:
        held[0] = None
        held[0] = cache = DynamicCache(config=model.config.text_config)
        _fill(model, cache, batch, prompt + new)
        given = with_entries(model, cache)
        return lambda: model(input_ids=_token(model, batch), **given)

    return Decoding("DynamicCache, eager", at, lambda: _bytes([x for layer in held[0].layers for x in (layer.keys, layer.values)]), points)


def static(model: Any, prompt: int, batch: int, longest: int, backend: str) -> Decoding:
    """Its step costs the same at every length: attention runs over the whole buffer."""
    cache = StaticCache(config=model.config.text_config, max_cache_len=prompt + longest + 1024)
    given = with_entries(model, cache)
    model(input_ids=_token(model, batch).expand(-1, 8), **given)  # allocates the buffers
    compiled = torch.compile(model.forward, backend=backend)

    def step() -> Any:
        return compiled(input_ids=_token(model, batch), **given)

    used = lambda: _bytes([x for layer in cache.layers for x in (layer.keys, layer.values)])  # noqa: E731
    return Decoding("StaticCache, compiled", lambda new: step, used, (0,))


def compiled(fast: Any, name: str, schedule: Schedule, inputs: dict[str, Tensor], points: tuple[int, ...]) -> Decoding:
    cache = given_cache(fast(**inputs, use_cache=True, logits_to_keep=1))
    start, batch, given = cache.layers[0].state.seen, len(inputs["input_ids"]), with_entries(fast, cache)

    def at(new: int) -> Callable[[], Any]:
        state = cache.layers[0].state
        if schedule.kv is not None and schedule.kv.when.overwrites:
            state.seen = start + new  # the slots are full all the time: only the positions differ
        else:
            state.reserve(start + new - state.seen)
            state.advance(start + new - state.seen)
        return lambda: fast(input_ids=_token(fast, batch), **given)

    used = lambda: _bytes([x for layer in cache.layers for x in (layer.keys, layer.values)])  # noqa: E731
    return Decoding(name, at, used, points)
