"""Baseline: random tokens."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.methods.combines.prune import Prune
from lightvlm_fx.methods.registry import AnyCombine
from lightvlm_fx.methods.token_scores.random import Random, Seed
from lightvlm_fx.presets.shared import PYRAMID, pyramid
from lightvlm_fx.schedule import Keep, Layer, Schedule

SURE = "Ours: a baseline, a hash of each token's place."


def random(
    keep: Keep = 0.35, layers: Sequence[Layer] = PYRAMID, combine: AnyCombine = Prune(), seed: Seed = 0
) -> Schedule:
    """Baseline: random tokens, at the layers and counts of `lightvlm` for the same keep."""
    return pyramid("random", keep, layers, score=Random(seed=seed), combine=combine)
