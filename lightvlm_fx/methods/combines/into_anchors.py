"""Combine: in every shot of a video anchors take up the tokens most like them (FastVID, arXiv 2503.11187)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import Combine, View
from lightvlm_fx.methods.options import Part

if TYPE_CHECKING:
    from torch import Tensor

NEVER = -3.0  # below every cosine


class IntoAnchors(Combine):
    """own * anchor + (1 - own) * the mean of what goes to it; with score `shot-anchors`, which says of which shot a token is.

    Read from the source's code: in each frame that has anchors, every token of the shot goes to the one that is most like it by cosine,
    but for salient tokens and the anchors of that frame; so a token goes to an anchor of each such frame. Of equals, to all.
    """

    name = "into-anchors"
    source = "arXiv 2503.11187"
    reads = ("hidden", "size", "score", "index", "left", "grid")
    own: Part = 0.6

    def combine(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        from lightvlm_fx.ops.segments import PADDING, rank_in_segment, unit
        from lightvlm_fx.ops.tiles import pick, tiles

        hidden, segment, index, left, score = view.hidden, view.segment, view.index, view.left, view.score
        shot = torch.where(score < 0, -score, (score - 1).clamp_min(0)).long()
        kept = (torch.where(score > 1, shot, 0)).gather(1, index) * (left >= 0)  # of an anchor its shot, else 0
        frame, x, exact = view.grid[..., 0], unit(hidden), hidden.float()
        anchors, at = pick(x, index), frame.gather(1, index)
        kinds = torch.where(kept > 0, kept * 2**24 + at, PADDING)
        first = (kept > 0) & (rank_in_segment(torch.zeros_like(kept, dtype=torch.float32), kinds) == 0)
        group = (first.long().cumsum(1) - 1).clamp_min(0)  # the anchors of one frame, side by side but for what stays salient
        total, went = exact.new_zeros(*index.shape, exact.shape[2]), []
        count = more = view.size.new_zeros(index.shape)
        for start, stop in tiles(x, segment.shape[1], index.numel()):
            its = shot[:, None, start:stop]
            mine = (score[:, None, start:stop] > 1) & (frame[:, None, start:stop] == at[..., None])
            goes = (kept[..., None] == its) & (its > 0) & ~mine
            alike = torch.where(goes, anchors @ x[:, start:stop].transpose(1, 2), NEVER)
            where = group.unsqueeze(-1).expand_as(alike)
            best = torch.full_like(alike, NEVER).scatter_reduce(1, where, alike, "amax").gather(1, where)
            to = (goes & (alike == best)).float()
            total, count = total + to @ exact[:, start:stop], count + to.sum(2)
            more = more + (to @ view.size[:, start:stop, None]).squeeze(2)
            went.append(torch.where(to.amax(1) > 0, to.argmax(1), -1))
        mine, taken = pick(hidden, index), count.unsqueeze(-1)
        weight = (1 / (taken + 1)).clamp_min(self.own)
        merged = weight * mine.float() + (1 - weight) * total / taken.clamp_min(1)
        merged = torch.where(taken > 0, merged.to(hidden.dtype), mine)
        here = torch.arange(index.shape[1], device=index.device).expand_as(index)
        gone = torch.cat(went, 1)
        filler = (left == PADDING) & (segment.gather(1, index) != PADDING)  # dropped, though its slot is used
        return merged, pick(view.size, index) + more, gone.scatter(1, index, torch.where(filler, gone.gather(1, index), here))
