"""Budgets: the same in every layer."""

from __future__ import annotations

from lightvlm_fx.methods.base import Budget


class Uniform(Budget):
    """Every layer has the mean."""

    name = "uniform"
    source = "baseline"
