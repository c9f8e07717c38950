"""Score: what the vision tower attends to most, then tokens without near-duplicates among the others (VisPruner, arXiv 2412.01818)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.base import TokenScore, View
from lightvlm_fx.methods.options import Part

if TYPE_CHECKING:
    from torch import Tensor


class SalientThenDistinct(TokenScore):
    """2 for the int(salient * budget) most salient tokens; 1 for the others that stay; 0 for what goes.

    Those others line up by falling salience; the ones at even places meet the ones at odd places by cosine, the `group` even ones that
    resemble theirs most leave, the even ones that are left line up by falling likeness and before the odd ones, and so on (read from code).
    Ours: of more than 64 * group others a 64th leaves at a time, so that the rounds of a graph have an end; ties go to the earlier
    token; where salient=1 leaves no room, none of the others stays. The source's attention is of the layer whose features the model
    takes, the last but one of LLaVA's tower, and its cosines are of those features; ours are of the last layer, and of what the
    projector gives.
    """

    name = "salient-then-distinct"
    source = "arXiv 2412.01818"
    reads = ("hidden", "budget", "tower")
    salient: Part = 0.5
    group: Positive = 8

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.near_duplicates import without_duplicates
        from lightvlm_fx.ops.segments import rank_in_segment, unit

        segment, visual = view.segment, view.segment >= 0
        salient = (view.budget.float() * self.salient).floor().long()
        place = torch.where(visual, rank_in_segment(view.tower, segment) - salient, -1)
        left = without_duplicates(unit(view.hidden), segment, place.clamp_min(-1), view.budget - salient, self.group)
        return torch.where(visual & (place < 0), 2.0, left.float())
