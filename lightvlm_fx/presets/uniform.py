"""Baseline: evenly spaced tokens."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.methods.combines.prune import Prune
from lightvlm_fx.methods.registry import AnyCombine
from lightvlm_fx.methods.token_scores.uniform import Uniform
from lightvlm_fx.presets.shared import PYRAMID, pyramid
from lightvlm_fx.schedule import Keep, Layer, Schedule

SURE = "Ours: a baseline, evenly spaced."


def uniform(keep: Keep = 0.35, layers: Sequence[Layer] = PYRAMID, combine: AnyCombine = Prune()) -> Schedule:
    """Baseline: evenly spaced tokens, at the layers and counts of `lightvlm` for the same keep."""
    return pyramid("uniform", keep, layers, score=Uniform(), combine=combine)
