"""Tier 5: every published method against a short, plain, independent reference, on tiny models of three kinds.

A reference says, for one row, which of its visual tokens stay at a cut (and what they become), from what the source model itself
holds there. It shares no code with the passes, scores and combines.
"""

import math

import pytest
import torch
from references import CASES, FAMILIES, last_query, run_reference, unit

from lightvlm_fx.schedule import Schedule

EXACT = 1e-5  # of the largest logit


def divprune(hidden, keep):
    """Greedy max-min over 1 - cosine; hidden [n, D]."""
    count = max(1, math.floor(len(hidden) * keep + 0.5))
    x = unit(hidden)
    apart = 1 - x @ x.T
    chosen = [int(apart.masked_fill(torch.eye(len(x), dtype=torch.bool), 9).min(1).values.argmax())]
    while len(chosen) < count:
        nearest = apart[:, chosen].min(1).values
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_divprune(family, case):
    """Survivors in order before the decoder, positions as if the prompt had been that short."""
    schedule = Schedule.preset("divprune", keep=0.3)
    run_reference(family, case, schedule, {0: lambda seen: [divprune(h, 0.3) for h in seen.images]}, EXACT)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_feather(family, case):
    """A grid and the best of the others; then the best alone."""
    schedule = Schedule.preset("feather", layers=(1, 2), keep=0.3, stride=3)

    def first(seen):
        out = []
        for image, scores in zip(seen.grids, last_query(seen, rope=False), strict=True):
            rows, columns = image
            grid = [r * columns + c for r in range(0, rows, 3) for c in range(0, columns, 3)]
            others = [i for i in scores.argsort(descending=True, stable=True).tolist() if i not in grid]
            out.append(sorted(grid + others[: int(0.3 * rows * columns)]))
        return out

    def second(seen):
        return [sorted(s.topk(max(1, int(len(s) * 0.3**2))).indices.tolist()) for s in last_query(seen, rope=False)]

    run_reference(family, case, schedule, {1: first, 2: second}, EXACT)
