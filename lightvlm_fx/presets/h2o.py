"""H2O (arXiv 2306.14048), as a schedule."""

from __future__ import annotations

from lightvlm_fx.frozen import Count
from lightvlm_fx.kv import Capacity, Kv
from lightvlm_fx.schedule import Schedule

SURE = (
    "Read from the authors' code: column sums over the prompt, to which each step adds its row, and a recent window that stays. Ours: "
    "the heads of a KV head share one mean score, and the numbers: 512 entries, half of them recent."
)


def h2o(capacity: Capacity = 512, recent: Count | None = None, sinks: Count = 0) -> Schedule:
    """H2O (arXiv 2306.14048): per KV head the entries with the largest accumulated attention, and the newest.

    `recent` is half of the capacity where not given, or 16 where the capacity is a share of the prompt.
    """
    if recent is None:
        recent = capacity // 2 if isinstance(capacity, int) else 16
    return Schedule(name="h2o", kv=Kv(capacity=capacity, recent=recent, sinks=sinks))
