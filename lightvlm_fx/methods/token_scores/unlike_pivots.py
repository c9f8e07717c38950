"""Score: a few pivots by the norm of their keys, and what resembles each of them least (DART, arXiv 2502.11494)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.frozen import Count, Positive
from lightvlm_fx.methods.base import AttentionScore, View

if TYPE_CHECKING:
    from torch import Tensor


class UnlikePivots(AttentionScore):
    """`image` pivots of each image and `text` ones of the text after, by L1 norm of keys; each adds the tokens least like it.

    Confirmed by ports of the authors' code (read 2026-11-26): keys of the layer before the cut, rotated; likeness is the cosine of hidden
    states before the cut; a pivot passes over what pivots before it took; text pivots take part, but are text and stay anyway.

    Ours: image pivots come first, then text pivots, each by falling norm (there a Python set's order); ties go to the earlier token;
    cosines are of hidden states as they are (there after the decoder's last norm, whose weights scale the channels); pictures of a row
    share the text pivots, which lie after the last; and of the `budget` tokens all that are no pivots are shared out among the pivots
    there are, one more for the first where they do not divide. With keep = image + (image + text) * n each adds n, as there.
    """

    name = "unlike-pivots"
    source = "arXiv 2502.11494"
    reads = ("hidden", "k", "budget")
    image: Positive = 4
    text: Count = 4

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import rank_in_segment, text_after_pictures, unit
        from lightvlm_fx.ops.tiles import pick

        segment, budget, x = view.segment, view.budget, unit(view.hidden)
        here, visual = torch.arange(segment.shape[1], device=segment.device).expand_as(segment), segment >= 0
        norm = view.k.float().abs().sum((1, 3))
        rank = rank_in_segment(norm, segment)
        asks = text_after_pictures(segment)
        asked = rank_in_segment(norm, torch.where(asks, 0, 1))
        own = budget.clamp_max(self.image)
        pivots = (own + asks.sum(1, keepdim=True).clamp_max(self.text)).clamp_min(1)
        share, rest = (budget - own) // pivots, (budget - own) % pivots
        score = (visual & (rank < own)).float() * (self.image + self.text + 1)
        number = torch.zeros_like(segment)  # of the pivots that had their turn
        for i in range(self.image + self.text):
            if i < self.image:
                which, there = visual & (rank == i), i < own
                # of each image the place of its pivot, one column for what is none
                at = torch.zeros(segment.shape[0], segment.shape[1] + 1, dtype=torch.int64, device=segment.device)
                at = at.scatter(1, torch.where(which, segment + 1, 0), here).gather(1, segment.clamp_min(-1) + 1)
            else:
                which = asks & (asked == i - self.image)
                at, there = torch.where(which, here, 0).sum(1, keepdim=True), which.any(1, keepdim=True)
            free = visual & (score == 0)
            unlike = torch.where(free, 1 - (x * pick(x, at)).sum(-1), -1.0)
            takes = free & there & (rank_in_segment(unlike, segment) < share + (number < rest).long())
            score = torch.where(takes, float(self.image + self.text - i), score)
            number = number + there
        return score
