"""Scissorhands (arXiv 2305.17118), as a schedule."""

from __future__ import annotations

from lightvlm_fx.frozen import Count, Positive
from lightvlm_fx.kv import Capacity, Kv
from lightvlm_fx.methods.entry_scores.marks import Marks
from lightvlm_fx.schedule import Schedule

SURE = (
    "No code of the authors was found; a third party's names a window of 400, 10 recent entries, and marks for less than a fair "
    "share. Ours: one entry goes each step, where the paper drops many at once; marks fade by 1 - 1/window a row; layers hold equally "
    "many."
)


def scissorhands(capacity: Capacity = 512, recent: Count = 10, window: Positive = 400) -> Schedule:
    """Scissorhands (arXiv 2305.17118): drop what had less than a fair share of attention most often of late."""
    return Schedule(name="scissorhands", kv=Kv(capacity=capacity, score=Marks(window=window), recent=recent, sinks=0))
