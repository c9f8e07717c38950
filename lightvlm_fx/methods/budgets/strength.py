"""Budgets: by the strength and the skewness of what elite queries attend to (AirCache, arXiv 2503.23956)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import Budget, View

if TYPE_CHECKING:
    from torch import Tensor


class Strength(Budget):
    """The mean of both statistics of the KV score `elite`, each divided by its mean over layers."""

    name = "strength"
    source = "arXiv 2503.23956"
    adaptive = True
    from_score = "elite"

    def shares(self, view: View) -> Tensor:
        from lightvlm_fx.ops.kv_budgets import proportions

        return proportions(view.statistic)
