"""Baseline: average pooling."""

from __future__ import annotations

from lightvlm_fx.methods.combines.pool import Pool
from lightvlm_fx.methods.counts.lattice import Lattice as SmallGrid
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.token_scores.lattice import Lattice
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Policy, Schedule

SURE = "Ours: a baseline, the means over the cells of a smaller grid."


def pool(side: Share = 0.5, positions: Policy = "input") -> Schedule:
    """Baseline: average pooling before the decoder, to `side` times the picture's rows and columns."""
    return before("pool", SmallGrid(side=side), Lattice(), Pool(), positions)
