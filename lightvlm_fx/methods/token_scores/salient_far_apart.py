"""Score: salient tokens unlike each other, picked one by one (SCoRe, CVPR 2026; its rule by a third-party note)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View
from lightvlm_fx.methods.options import Power

if TYPE_CHECKING:
    from torch import Tensor


class SalientFarApart(TokenScore):
    """The order of a greedy pick: first the most salient token, then the largest (least cosine distance to those picked) * salience^power.

    First S, then S - 1, ...; 0 for those that stay behind. The note has the pick between tower and projector; ours is over what the
    projector gives, as is every cut before layer 0.
    """

    name = "salient-far-apart"
    source = "SCoRe, CVPR 2026, by a third-party note; the pick as in arXiv 2503.02175"
    reads = ("hidden", "budget", "stay", "tower")
    power: Power = 0.8

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.pick_apart import pick_apart
        from lightvlm_fx.ops.segments import rank_in_segment, unit

        # its rank, in [-1, 0]: saliences may differ by less than what pick_apart adds to them can tell
        first = -rank_in_segment(view.tower, view.segment).float() / view.segment.shape[1]
        return pick_apart(unit(view.hidden), view.segment, view.budget, view.stay, first, view.tower.clamp_min(0) ** self.power)
