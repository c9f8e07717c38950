"""Budgets: in proportion to a list of weights, one a layer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from lightvlm_fx.errors import ScheduleError, shown
from lightvlm_fx.methods.base import Budget

LEAST = 1e-100  # of a layer among others: sums and quotients of weights stay finite


def _weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and LEAST <= value <= 1 / LEAST


def _weights(value: Any) -> Any:
    if not isinstance(value, list | tuple) or not value or not all(map(_weight, value)):
        span = f"of {LEAST:g} to {1 / LEAST:g}"
        raise ScheduleError(f"budgets as a list must hold one positive weight a layer, got {shown(value)}; give numbers {span}")
    return tuple(map(float, value))


class Weights(Budget):
    """Written as the list alone."""

    name = "weights"
    source = "baseline"
    by_layer = True
    alone = "weights"
    weights: Annotated[tuple[float, ...], BeforeValidator(_weights)]

    @property
    def data(self) -> Any:
        return list(self.weights)

    def entries(self, mean: int, window: int, prompt: int, depth: int) -> list[int]:
        if len(self.weights) != depth:
            raise ScheduleError(f"budgets lists {len(self.weights)} layers, but the decoder has {depth}; give one weight a layer")
        scale = mean * depth / sum(self.weights)
        return [round(scale * weight) for weight in self.weights]
