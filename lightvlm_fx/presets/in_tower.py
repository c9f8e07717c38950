"""What presets that cut inside the vision tower share: the cuts there, and the one by which the prompt loses the same."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.methods.registry import AnyCombine, AnyTokenScore
from lightvlm_fx.methods.token_scores.survived import Survived
from lightvlm_fx.presets.shared import falling
from lightvlm_fx.schedule import Cut, Layer, Policy, Schedule, TowerCut


def tower_cuts(keep: float, layers: Sequence[Layer], scores: Sequence[AnyTokenScore], combine: AnyCombine,
               proportional: bool) -> tuple[TowerCut, ...]:  # fmt: skip
    """Cuts that each leave the same share of what arrives, `keep` of a picture at last."""
    each = zip(layers, falling(keep, layers), scores, strict=True)
    return tuple(TowerCut(layer=at, keep=k, score=score, combine=combine, proportional=proportional) for at, k, score in each)


def survivors(keep: float, positions: Policy = "input") -> Cut:
    """The cut by which the prompt loses what left in the tower."""
    return Cut(layer=0, keep=keep, score=Survived(), positions=positions)


def after_tower(schedule: Schedule, tower: float, layers: Sequence[Layer], scores: Sequence[AnyTokenScore],
                combine: AnyCombine) -> Schedule:  # fmt: skip
    """`schedule` for what cuts inside the tower leave, the share `tower`; itself where that is everything."""
    if tower == 1:
        return schedule
    if any(not isinstance(cut.keep, float) for cut in schedule.cuts):
        raise ScheduleError(f"{schedule.name}: keep must be a share beside tower={tower}, which it is a share of")
    later = tuple(cut.model_copy(update={"keep": cut.keep * tower}) for cut in schedule.cuts if isinstance(cut.keep, float))
    cuts = (survivors(tower, "keep"), *later)
    return schedule.model_copy(update={"tower": tower_cuts(tower, layers, scores, combine, False), "cuts": cuts})
