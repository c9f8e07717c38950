"""DyCoke (arXiv 2411.15024), its temporal half, as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.counts.frame_groups import FrameGroups
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.token_scores.group_change import GroupChange
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Policy, Schedule

SURE = (
    "Read from the authors' code: groups of four frames, compared by cosine at the same place, 0.3 of the others kept. Ours: a last "
    "group is treated as the others are; their half that chooses cache entries while decoding is left out."
)


def dycoke(keep: Share = 0.3, positions: Policy = "input") -> Schedule:
    """DyCoke (arXiv 2411.15024), its temporal half: of every fourth frame all, of the others `keep`, what changed most.

    Still pictures stay whole. Left out: the cache entries that the source chooses anew while decoding.
    """
    return before("dycoke", FrameGroups(share=keep), GroupChange(), positions=positions)
