"""Budgets: more entries in lower layers than in upper ones (PyramidKV, arXiv 2406.02069)."""

from __future__ import annotations

from lightvlm_fx.methods.base import Budget

BETA = 20  # the last layer's scored entries are the mean's, divided by this


class Pyramid(Budget):
    """Falling linearly with depth around the mean; uniform where the prompt is short."""

    name = "pyramid"
    source = "arXiv 2406.02069"
    by_layer = True

    def entries(self, mean: int, window: int, prompt: int, depth: int) -> list[int]:
        scored = mean - window
        low = max(1, scored // BETA)
        high = 2 * scored - low
        if high >= prompt - window:
            high = prompt - window
            low = 2 * scored - high
        if depth == 1 or low < 0 or prompt < mean or high < low:
            return [mean] * depth
        step = (high - low) / (depth - 1)
        return [round(high - layer * step) + window for layer in range(depth)]
