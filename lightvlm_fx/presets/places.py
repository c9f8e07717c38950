"""Where a schedule acts, by which lists and pages of presets are ordered."""

from __future__ import annotations

from lightvlm_fx.methods.base import Picture
from lightvlm_fx.schedule import Schedule

PLACES = (
    "Before the vision tower", "Inside the vision tower", "Before the decoder", "Between the decoder's layers", "In the cache", "Nowhere",
)  # fmt: skip


def place(schedule: Schedule) -> str:
    """The first of PLACES in which a schedule acts."""
    early = any(cut.layer == 0 for cut in schedule.cuts)
    acts = (schedule.downsample, schedule.tower, early, schedule.cuts or schedule.freeze, schedule.kv, True)
    return next(name for name, there in zip(PLACES, acts, strict=True) if there)


def videos_only(schedule: Schedule) -> bool:
    """Whether still pictures stay whole, and videos do not."""
    still, video = Picture(64, (1, 8, 8)), Picture(64 * 16, (16, 8, 8))
    return bool(schedule.cuts) and schedule.budgets(still)[-1] == 64 and schedule.budgets(video)[-1] < 64 * 16
