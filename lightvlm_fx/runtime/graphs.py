"""The graphs of one compiled model: made when a call first asks for them, and forgotten when its source changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightvlm_fx.compat import tracing
from lightvlm_fx.errors import InputError
from lightvlm_fx.exporters.torch_compile import Compiled, freeze, lower
from lightvlm_fx.graph.program import Program
from lightvlm_fx.model.capture import Call, capture
from lightvlm_fx.passing.report import BucketReport, Report
from lightvlm_fx.releases import releases_first
from lightvlm_fx.runtime.follow import fingerprint
from lightvlm_fx.schedule import Schedule


@dataclass(frozen=True)
class Entry:
    """One compiled graph."""

    program: Program
    compiled: Compiled
    bucket: BucketReport

    def run(self, given: dict[str, Tensor]) -> list[Tensor]:
        """The graph's outputs; the first call is timed, as torch.compile does its work in it."""
        inputs = [given[name] for name in self.program.inputs]
        if self.bucket.first_s:
            return list(self.compiled(*inputs))
        with tracing():
            start = time.perf_counter()
            outputs = list(self.compiled(*inputs))
            self.bucket.first_s = self.bucket.first_s or time.perf_counter() - start
        return outputs


class Captured(dict[Any, tuple[Program, float]]):
    """Graphs before any pass, with the seconds that each took. Compiled models of one source share them."""

    of: tuple[Any, ...] = ()  # the source's fingerprint that they were captured at


class Graphs:
    """Of one source decoder, under one backend and any schedules; `report` is told of each."""

    def __init__(self, source: nn.Module, report: Report, *, backend: str, strict: bool, static: bool, prepack: bool,
                 dump: str | Path | None, options: dict[str, Any]) -> None:  # fmt: skip
        self.source, self.report = source, report
        self.backend, self.strict, self.static, self.prepack, self.dump, self.options = backend, strict, static, prepack, dump, options
        self.captured = Captured()
        self.entries: dict[Any, Entry] = {}
        self.frozen = False
        self.taken: tuple[Any, ...] = ()  # the source's fingerprint at the latest prompt

    def freeze(self, frozen: bool) -> None:
        """Compile nothing any more, or again."""
        self.frozen = frozen
        freeze((entry.compiled for entry in list(self.entries.values())), frozen)  # other threads may add some

    def follow_source(self) -> None:
        """Forget the graphs of a source that is not what it was: other weights, hooks, or adapters switched or merged."""
        now = fingerprint(self.source)
        if self.taken == now and self.captured.of == now:
            return
        with tracing():
            if self.taken not in ((), now):
                if self.frozen:
                    raise InputError(
                        "the source model changed after the graphs were frozen: weights, modules, hooks or adapters of its decoder are "
                        "others; call fast.lightvlm.warm_up(inputs, freeze=True) again, or thaw()"
                    )
                self.entries.clear()
            if self.captured.of != now:
                self.captured.clear()
            self.taken = self.captured.of = now

    @releases_first()
    def capture(self, kwargs: dict[str, Any], stage: Any, masked: bool) -> tuple[Program, float, tuple[Any, ...]]:
        """The graph of such a call before any pass, the seconds that it took, and what it is kept under.

        One serves every number of rows, and every length, unless the decoder's own code forbids it; one row without padding has its own.
        """
        call = Call.of(kwargs)
        kind = (stage, masked, call.size[1] == 1 and stage == "decode")
        keys = {free: (*kind, free, call.signature(free, masked)) for free in ("BS", "S", "B", "")}

        def known() -> tuple[Program, float, tuple[Any, ...]] | None:
            return next(((*found, key) for key in keys.values() if (found := self.captured.get(key))), None)

        if found := known():
            return found
        with tracing():
            if found := known():  # of another thread, while this one waited
                return found
            start = time.perf_counter()
            program = capture(self.source, kwargs, stage, masked=masked)
            key, seconds = keys[program.facts.free], time.perf_counter() - start
            self.captured[key] = (program, seconds)
        return program, seconds, key

    def rewrite(self, pipe: Any, program: Program, seconds: float, kwargs: dict[str, Any]) -> tuple[Program, BucketReport]:
        start = time.perf_counter()
        rewritten, steps = pipe.run(program, strict=self.strict, dump=self.dump)
        rows, length = kwargs["inputs_embeds"].shape[:2]
        shapes = f"{rows} rows x {length} tokens" if program.stage == "prefill" or length > 1 else f"{rows} rows x 1 token"
        facts = rewritten.facts
        bucket = BucketReport(program.stage, rows, shapes, facts.masked, facts.static_length, seconds,
                        time.perf_counter() - start, tuple(steps))  # fmt: skip
        return rewritten, bucket

    def entry(self, key: tuple[Any, ...], schedule: Schedule, build: Callable[[], tuple[Program, BucketReport]], what: str) -> Entry:
        key = (*key, schedule.fingerprint)
        if entry := self.entries.get(key):
            return entry
        with tracing():
            if entry := self.entries.get(key):  # of another thread, while this one waited
                return entry
            if self.frozen:
                known = "\n  ".join(f"{b.stage}: {b.shapes}" for b in self.report.buckets)
                raise InputError(
                    f"this batch ({what}) exceeds the buckets that were warmed up:\n  {known}\n"
                    "call fast.lightvlm.warm_up(inputs) with such a batch before freezing, or fast.lightvlm.thaw()"
                )
            with releases_first():
                program, bucket = build()
            entry = self.entries[key] = Entry(program, lower(program, self.backend, self.options, self.static, self.prepack), bucket)
            self.report.buckets.append(bucket)
            return entry
