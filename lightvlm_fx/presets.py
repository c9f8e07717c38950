"""Published methods and baselines as schedules. A preset is a function from named options to a Schedule.

The exact recipe of LightVLM is not public: `lightvlm` is a reconstruction whose every unknown is an option.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from lightvlm_fx.errors import ScheduleError, UnknownName
from lightvlm_fx.schedule import Cut, Schedule, _keep

# Shares of the depth before which the pyramid merges; chosen on the bundled model (docs/benchmarks.md).
STAGES = (0.25, 0.625, 0.875)
EQUAL_STAGES = (0.25, 0.5, 0.75)


def _pyramid(name: str, keep: float | int, layers: Sequence[int | float], **options: object) -> Schedule:
    """Equal stages: stage s of n leaves keep^(s/n) of an image (a count: the same fall from its size)."""
    _keep(keep)
    n = len(layers)
    if not n:
        raise ScheduleError("layers must name at least one layer, got none")
    if isinstance(keep, float):
        kept: list[float | int] = [keep ** ((s + 1) / n) for s in range(n - 1)] + [keep]
    elif n == 1:
        kept = [keep]
    else:
        raise ScheduleError(f"{name}: keep as a count needs a single layer (layers=(k,)), got layers={tuple(layers)}")
    cuts = tuple(Cut(layer=at, keep=k, **options) for at, k in zip(layers, kept, strict=True))
    return Schedule(name=name, cuts=cuts)


def lightvlm(
    keep: float | int = 0.35,
    layers: Sequence[int | float] = STAGES,
    score: str = "peak",
    combine: str = "merge",
    positions: str = "keep",
    rope: bool = True,
    power: float = 0.25,
    centres: float = 0.1,
    group: int = 5,
    proportional: bool | None = None,
) -> Schedule:
    """LightVLM (arXiv 2509.00419), reconstructed: pyramid token merging over the decoder's layers."""
    return _pyramid(
        "lightvlm",
        keep,
        layers,
        score=score,
        combine=combine,
        positions=positions,
        rope=rope,
        power=power,
        centres=centres,
        group=group,
        proportional=combine != "prune" if proportional is None else proportional,
    )


def fastv(keep: float | int = 0.5, layer: int | float = 2, rope: bool = True) -> Schedule:
    """FastV (arXiv 2403.06764): after layer 2, keep the tokens the last prompt token attends to most."""
    return Schedule(name="fastv", cuts=(Cut(layer=layer, keep=keep, rope=rope),))


def pyramiddrop(
    keep: Sequence[float | int] = (0.5, 0.25, 0.125),
    layers: Sequence[int | float] = EQUAL_STAGES,
    positions: str = "compact",
) -> Schedule:
    """PyramidDrop (arXiv 2410.17247): geometric drops at equal stages, survivors renumbered.

    The original ranks with the projections of the layer after the cut; this one with the layer before.
    """
    if len(keep) != len(layers):
        raise ScheduleError(f"pyramiddrop: keep has {len(keep)} stages and layers {len(layers)}; give one each")
    cuts = tuple(Cut(layer=at, keep=k, positions=positions) for at, k in zip(layers, keep, strict=True))
    return Schedule(name="pyramiddrop", cuts=cuts)


def random(
    keep: float | int = 0.35, layers: Sequence[int | float] = STAGES, combine: str = "prune", seed: int = 0
) -> Schedule:
    """Baseline: random tokens, at the layers and counts of `lightvlm` for the same keep."""
    return _pyramid("random", keep, layers, score="random", combine=combine, seed=seed)


def uniform(keep: float | int = 0.35, layers: Sequence[int | float] = STAGES, combine: str = "prune") -> Schedule:
    """Baseline: evenly spaced tokens, at the layers and counts of `lightvlm` for the same keep."""
    return _pyramid("uniform", keep, layers, score="uniform", combine=combine)


def none() -> Schedule:
    """No reduction: the full model through the same capture and compiler, the honest baseline for speed."""
    return Schedule(name="none")


PRESETS: dict[str, Callable[..., Schedule]] = {
    f.__name__: f for f in (lightvlm, fastv, pyramiddrop, random, uniform, none)
}


def make(name: str, **options: object) -> Schedule:
    """The preset `name` with `options`. Raises UnknownName for either, ScheduleError for a bad value."""
    if name not in PRESETS:
        raise UnknownName.of("preset", name, PRESETS)
    known = inspect.signature(PRESETS[name]).parameters
    for option, value in options.items():
        if option not in known:
            raise UnknownName.of(f"option of preset {name!r}", option, known)
        usual = known[option].default
        if isinstance(usual, tuple) and not isinstance(value, tuple | list):
            raise ScheduleError(f"{name}: {option} must be a list such as {list(usual)}, got {value!r}")
    return PRESETS[name](**options)
