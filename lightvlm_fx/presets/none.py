"""Baseline: no reduction."""

from __future__ import annotations

from lightvlm_fx.schedule import Schedule

SURE = "Ours: a baseline, nothing is reduced."


def none() -> Schedule:
    """No reduction: the full model through the same capture and compiler, the honest baseline for speed."""
    return Schedule(name="none")
