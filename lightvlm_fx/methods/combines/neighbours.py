"""Combine: every survivor takes up its nearest tokens, weighed by what the vision tower attends to (PruMerge, arXiv 2403.15388)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.base import Combine, View

if TYPE_CHECKING:
    from torch import Tensor


class Neighbours(Combine):
    """Each survivor plus the sum of its `group` nearest tokens of the image, staying or not, each times its salience.

    With `extra`, the survivor of lowest rank gives its slot to the salience-weighed sum of all that is dropped, itself included: the
    source appends that token. Weights are not normalised, and nearest is by cosine, as read from code; there both features and keys, of
    which the cosines are, are the tower's, here what the projector gives. Ours: an image that drops nothing stays as it is.
    """

    name = "neighbours"
    source = "arXiv 2403.15388"
    reads = ("hidden", "size", "rank", "budget", "index", "left", "tower")
    group: Positive = 32
    extra: bool = True

    @property
    def fewest(self) -> int:
        return self.group

    def combine(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        from lightvlm_fx.ops.segments import over_image, same_image, unit
        from lightvlm_fx.ops.tiles import pick, span, tiles

        hidden, segment, rank, index, left = view.hidden, view.segment, view.rank, view.index, view.left
        budget, tower = view.budget, view.tower
        less = (budget < over_image(segment >= 0, segment)).gather(1, index) & (left >= 0)
        extra = less & (rank == budget - 1).gather(1, index) & (budget > 1).gather(1, index) & self.extra
        x, exact, here = unit(hidden), hidden.float(), torch.arange(segment.shape[1], device=segment.device)
        gone, parts = (rank >= budget - 1).unsqueeze(1), []
        for start, stop in tiles(index, index.shape[1], segment.numel()):
            rows = left[:, start:stop]
            first, last = span(rows, segment)
            if first == last:
                parts.append(exact.new_zeros(*rows.shape, exact.shape[2]))
                continue
            image = same_image(rows, segment[:, first:last])
            other = image & (here[first:last] != index[:, start:stop, None])
            alike = pick(x, index[:, start:stop]) @ x[:, first:last].transpose(1, 2)
            best = torch.where(other, alike, -2.0).topk(min(self.group, last - first), dim=-1)
            near = torch.zeros_like(alike).scatter(2, best.indices, (best.values > -2.0).float())
            weight = torch.where(extra[:, start:stop, None], (image & gone[..., first:last]).float(), near) * tower[:, None, first:last]
            parts.append(weight @ exact[:, first:last])
        mine, size = pick(hidden, index), pick(view.size, index)
        merged = torch.where(extra.unsqueeze(-1), 0.0, mine.float()) + torch.cat(parts, 1)
        merged = torch.where(less.unsqueeze(-1), merged.to(hidden.dtype), mine)
        # what is dropped goes to the extra token, where there is one
        slots = torch.arange(index.shape[1], device=index.device).expand_as(index)
        there = over_image(torch.zeros_like(tower).scatter(1, index, torch.where(extra, slots + 1, 0).float()), segment).long() - 1
        dropped = (segment >= 0) & (rank >= budget)
        went = torch.full_like(segment, -1).scatter(1, index, slots)
        went = torch.where(dropped, there, went)
        more = over_image(torch.where(dropped, view.size, 0.0), segment).gather(1, index)
        return merged, torch.where(extra, size + more, size), went
