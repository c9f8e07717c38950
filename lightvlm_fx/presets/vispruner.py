"""VisPruner (arXiv 2412.01818, ICCV 2025), as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.options import Part
from lightvlm_fx.methods.token_scores.salient_then_distinct import SalientThenDistinct
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Keep, Policy, Schedule

SURE = (
    "Read from ports of the authors' code: int(share * count) by tower attention, then near-duplicates of the rest leave, 8 at a time, "
    "128 of 576 tokens and a half of them salient. Ours: a 64th at a time of more than 512 others; the tower's last layer, and cosines "
    "of what the projector gives, where theirs are of the tower's features."
)


def vispruner(keep: Keep = 128 / 576, important: Part = 0.5, positions: Policy = "input") -> Schedule:
    """VisPruner (arXiv 2412.01818): before the decoder, what the vision tower attends to most, and of the rest tokens unlike each other.

    `important` is the share of the first among what stays.
    """
    return before("vispruner", keep, SalientThenDistinct(salient=important), positions=positions)
