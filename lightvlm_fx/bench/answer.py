"""`lightvlm bench answer`: one long answer in one piece, through generate().

Is its last token as cheap as its first, is memory flat, is nothing compiled again?
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from lightvlm_fx.bench.prefill import Shape, build, example
from lightvlm_fx.compat import given_cache
from lightvlm_fx.errors import InputError, NotSupported
from lightvlm_fx.exporters.torch_compile import compiled_graphs
from lightvlm_fx.ops.bounded_attention import victims
from lightvlm_fx.schedule import Schedule

SETTLED = 600  # tokens after which times and memory must no longer change
BLOCK = 50  # steps
LEAST = SETTLED + 4 * BLOCK


@dataclass
class Watched(BaseStreamer):
    """When each token came, and what had been compiled and how much memory had been taken at most by then."""

    name: str
    device: str
    tell: Callable[[int], None] = lambda n: None
    times: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)  # bytes, so far
    graphs: list[int] = field(default_factory=list)
    choice: float = 0.0  # seconds a step for choosing whom to give up, in all layers

    def put(self, value: Tensor) -> None:
        """Called by generate() with the prompt, then with every token."""
        self.times.append(time.perf_counter())
        self.peaks.append(peak_memory(self.device))
        self.graphs.append(compiled_graphs())
        self.tell(len(self.times))

    def end(self) -> None:
        """Called by generate() at the end."""

    def steps(self, first: int, end: int) -> list[float]:
        """Seconds of each step from token `first` on."""
        return [b - a for a, b in zip(self.times[first:end], self.times[first + 1 : end + 1], strict=True)]

    @property
    def slope(self) -> tuple[float, float]:
        """How much longer a step takes for 1000 more tokens, as a share of a step, and the standard error of that.

        Over medians of BLOCK steps: a machine is fast and slow for seconds at a time, so single steps are not independent.
        """
        y = torch.tensor(self.steps(SETTLED, len(self.times) - 1), dtype=torch.float64)
        y = torch.stack([block.median() for block in y.split(BLOCK)]) / y.median()
        x = torch.arange(len(y), dtype=torch.float64) * BLOCK / 1000
        x = x - x.mean()
        slope = (x * y).sum() / x.square().sum()
        rest = y - y.mean() - slope * x
        return float(slope), float((rest.square().sum() / (len(y) - 2) / x.square().sum()).sqrt())


def peak_memory(device: str) -> int:
    """Bytes that this process took at most so far: of the device, or resident on the host."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer(
    shape: Shape, schedule: Schedule, *, new: int = 4096, text: int = 64, backend: str = "inductor",
    dtype: torch.dtype = torch.bfloat16, device: str = "cpu", tell: Callable[[int], None] = lambda n: None,
) -> Watched:  # fmt: skip
    """`new` greedy tokens after a prompt of `shape.visual` visual and `text` text tokens; random weights.

    Raises InputError for an answer too short to settle, NotSupported for a schedule whose steps do not overwrite.
    """
    import lightvlm_fx as lightvlm

    if new < LEAST:
        raise InputError(f"an answer must have {LEAST} tokens and more to be judged after its {SETTLED}th, got {new}")
    if schedule.kv is None or not schedule.kv.when.overwrites:
        raise NotSupported(f"schedule {schedule.name!r} does not hold its cache to a fixed size while decoding; it needs kv.when='step'")
    model = build(shape, device, dtype)
    inputs = example(model, shape, 1, text, device, dtype)
    fast = lightvlm.compile(model, schedule, backend=backend)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    made = Watched(schedule.name, device, tell)
    with torch.inference_mode():
        out = fast.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, streamer=made, return_dict_in_generate=True)
        made.choice = choice_seconds(given_cache(out), schedule, backend)
    return made


def choice_seconds(cache: Any, schedule: Schedule, backend: str, turns: int = 200) -> float:
    """Seconds that the choice of a victim takes in all layers, compiled alone (inside a step it is fused)."""
    layers, kv = cache.layers, schedule.kv
    assert kv is not None
    choose = victims if backend == "eager" else torch.compile(victims, backend=backend)
    state = layers[0].state
    query = torch.tensor([state.seen], device=layers[0].device)
    per_layer = []
    for turn in range(turns):
        start = time.perf_counter()
        for layer in layers:
            choose(layer.table.position, layer.table.score, query, state.start, 1, kv.sinks, kv.recent)
        if turn > turns // 10:
            per_layer.append(time.perf_counter() - start)
    return statistics.median(per_layer)
