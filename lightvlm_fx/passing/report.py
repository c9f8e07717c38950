"""What was done: a report of every bucket that was compiled, as text or JSON-ready data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightvlm_fx.graph.program import Facts
from lightvlm_fx.passing.pipeline import PassRun


@dataclass
class BucketReport:
    """One graph, and what it took to make it."""

    stage: str
    rows: int
    shapes: str
    masked: bool
    static_length: bool
    capture_s: float
    rewrite_s: float
    steps: tuple[PassRun, ...]
    first_s: float = 0.0  # its first run, in which torch.compile compiles it
    tokens_per_layer: tuple[int, ...] = ()  # in its first run
    visual_per_layer: tuple[float, ...] = ()  # mean visual tokens a row

    def watch(self, facts: Facts, segment: Tensor, outputs: dict[str, Tensor]) -> None:
        """Read off the first run of a prefill what each layer held; `segment` [B, S] is the prompt's."""
        if self.tokens_per_layer:
            return
        held = [segment, *(outputs[f"segment.{i}"] for i in range(len(facts.cuts)))]
        seen = [(x.shape[1], float((x >= 0).sum()) / len(x)) for x in held]
        by_layer = [seen[facts.token_set(layer)] for layer in range(facts.layers)]
        self.tokens_per_layer, self.visual_per_layer = (tuple(part) for part in zip(*by_layer, strict=True))

    def __str__(self) -> str:
        head = f"{self.stage}: {self.shapes}" + (", masked" if self.masked else "")
        head += ", static length" if self.static_length else ""
        tokens = " ".join(map(str, self.tokens_per_layer))
        lines = [head, f"  capture {self.capture_s:.1f} s, rewriting {self.rewrite_s:.1f} s, compiling and first run {self.first_s:.1f} s"]
        if self.stage == "prefill":
            lines.append(f"  tokens per layer: {tokens}")
        return "\n".join([*lines, *(f"  {i + 1}/{len(self.steps)}  {s}" for i, s in enumerate(self.steps))])


@dataclass
class Report:
    """Prints as text; `data()` is the same for machines."""

    model: str
    schedule: str
    fingerprint: str
    backend: str
    warnings: list[str] = field(default_factory=list)
    buckets: list[BucketReport] = field(default_factory=list)  # of the decoder
    vision: list[BucketReport] = field(default_factory=list)  # of the vision tower and the projector

    def of(self, stage: str) -> list[BucketReport]:
        """The buckets of one stage, in the order in which they were opened."""
        return [bucket for bucket in self.buckets if bucket.stage == stage]

    def __str__(self) -> str:
        head = f"{self.model} with schedule {self.schedule} ({self.fingerprint}), backend {self.backend}"
        body = [str(b) for b in (*self.vision, *self.buckets)] or ["nothing compiled yet: call warm_up(inputs) or generate()"]
        return "\n".join([head, *self.warnings, *body])

    __repr__ = __str__

    def data(self) -> dict[str, Any]:
        """What it prints, and seconds, in what JSON can hold."""
        return {
            "model": self.model,
            "schedule": self.schedule,
            "fingerprint": self.fingerprint,
            "backend": self.backend,
            "warnings": self.warnings,
            "buckets": [
                {
                    "stage": b.stage,
                    "shapes": b.shapes,
                    "tokens_per_layer": list(b.tokens_per_layer),
                    "masked": b.masked,
                    "seconds": {"capture": b.capture_s, "rewrite": b.rewrite_s, "first_run": b.first_s},
                    "passes": [
                        {"pass": s.pass_text, "matched": s.result.matched, "expected": s.result.expected, "delta": s.delta}
                        for s in b.steps
                    ],
                }
                for b in (*self.buckets, *self.vision)
            ],
        }
