"""What presets share: several cuts, and one before the decoder."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.methods.combines.prune import Prune
from lightvlm_fx.methods.registry import AnyCombine, AnyTokenScore
from lightvlm_fx.schedule import Cut, Keep, KeepOrCount, Layer, Policy, Schedule

# Shares of the depth before which the pyramid merges; chosen on the bundled model (docs/benchmarks.md).
PYRAMID = (0.25, 0.625, 0.875)
QUARTERS = (0.25, 0.5, 0.75)


def falling(keep: float, layers: Sequence[Layer]) -> list[float]:
    """What cuts at `layers` leave by equal factors, `keep` at last; raises ScheduleError where there are none."""
    n = len(layers)
    if not n:
        raise ScheduleError("layers must name at least one layer, got none")
    return [keep ** ((s + 1) / n) for s in range(n - 1)] + [keep]


def pyramid(name: str, keep: Keep, layers: Sequence[Layer], **options: object) -> Schedule:
    """Equal factors: cut s of n leaves keep^(s/n) of an image (a count: the same fall from its size)."""
    kept: Sequence[float | int] = falling(keep, layers) if isinstance(keep, float) else [keep]
    if len(kept) != len(layers):
        raise ScheduleError(f"{name}: keep as a count needs a single layer (layers=(k,)), got layers={tuple(layers)}")
    cuts = tuple(Cut(layer=at, keep=k, **options) for at, k in zip(layers, kept, strict=True))
    return Schedule(name=name, cuts=cuts)


def cuts(name: str, layers: Sequence[Layer], keep: Sequence[Keep], **options: object) -> Schedule:
    """A cut before each of `layers`, which leaves its entry of `keep`."""
    if len(keep) != len(layers):
        raise ScheduleError(f"{name}: keep has {len(keep)} entries and layers {len(layers)}; give one each")
    return Schedule(name=name, cuts=tuple(Cut(layer=at, keep=k, **options) for at, k in zip(layers, keep, strict=True)))


def before(name: str, keep: KeepOrCount, score: AnyTokenScore, combine: AnyCombine = Prune(), positions: Policy = "input") -> Schedule:
    """One cut of what the projector gives, after which the model answers as if the prompt had been that short."""
    return Schedule(name=name, cuts=(Cut(layer=0, keep=keep, score=score, combine=combine, positions=positions),))
