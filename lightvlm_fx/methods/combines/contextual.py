"""Combine: the last survivors take up what is dropped, each the mean of what is most like it (VisionZip, arXiv 2412.04467)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import Combine, View
from lightvlm_fx.methods.options import Part

if TYPE_CHECKING:
    from torch import Tensor


class Contextual(Combine):
    """Of an image's budget m, the last round(share * m) by rank each become themselves plus the mean of the dropped tokens that go to them.

    A dropped token goes to the one of the largest cosine. Target plus mean, not their mean, is read from the source's code. There cosines
    are of keys of the tower, and what is summed its output; here both are what the projector gives. Means are weighed by size.
    """

    name = "contextual"
    source = "arXiv 2412.04467"
    reads = ("hidden", "size", "rank", "budget", "index", "left")
    share: Part = 1 / 6

    def combine(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        from lightvlm_fx.ops.merge_tokens import sums
        from lightvlm_fx.ops.segments import PADDING, portion, unit
        from lightvlm_fx.ops.similarity import nearest
        from lightvlm_fx.ops.tiles import pick, wanted

        hidden, segment, rank, index, left = view.hidden, view.segment, view.rank, view.index, view.left
        dropped = (segment >= 0) & (rank >= view.budget)
        last = (rank >= view.budget - portion(view.budget, self.share)).gather(1, index)
        x, rows = unit(hidden), wanted(dropped)
        own = torch.where(dropped, segment, PADDING)
        went = nearest(pick(x, rows), pick(own, rows), pick(x, index), torch.where(last, left, PADDING))
        if rows is not None:
            went = torch.full_like(segment, -1).scatter(1, rows, went)
        taken, more = sums(hidden, view.size, went, index.shape[1])
        mine = pick(hidden, index)
        merged = torch.where(more.unsqueeze(-1) > 0, (mine.float() + taken / more.clamp_min(1).unsqueeze(-1)).to(hidden.dtype), mine)
        here = torch.arange(index.shape[1], device=index.device).expand_as(index)
        went = went.scatter(1, index, torch.where(dropped.gather(1, index), went.gather(1, index), here))
        return merged, pick(view.size, index) + more, went
