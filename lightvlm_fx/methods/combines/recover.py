"""Combine: a few survivors are centres that absorb their nearest dropped tokens; the rest is dropped.

After iLLaVA (arXiv 2412.06263), the published sibling of LightVLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lightvlm_fx.frozen import Number, Positive
from lightvlm_fx.methods.base import Combine, View

if TYPE_CHECKING:
    from torch import Tensor

NEVER = -3e38  # below every product
Centres = Annotated[Number, Field(ge=0, le=1)]


class Recover(Combine):
    """Score-weighted mean of each centre and its `group` most similar dropped tokens.

    Of an image's budget m, the last round(centres * m) by rank are centres. What went nowhere went to -1.
    """

    name = "recover"
    source = "arXiv 2412.06263"
    reads = ("hidden", "size", "score", "rank", "budget", "index", "left")
    centres: Centres = 0.1
    group: Positive = 5

    @property
    def fewest(self) -> int:
        return self.group

    def number(self, budget: Tensor) -> Tensor:
        """How many of `budget` survivors are centres."""
        from lightvlm_fx.ops.segments import portion

        return portion(budget, self.centres)

    def compared(self, hidden: Tensor) -> Tensor:
        """What is multiplied to tell how alike tokens are [B, S, D] float32."""
        from lightvlm_fx.ops.segments import unit

        return unit(hidden)

    def weights(self, alike: Tensor, score: Tensor) -> Tensor:
        """How much each token of a group counts, of how `alike` it is to the centre and its `score`, all [B, rows, group]."""
        return score.clamp_min(0)

    def joined(self, centre: Tensor, own: Tensor, sums: Tensor, weight: Tensor) -> Tensor:
        """What becomes of a centre [B, K, D], of its weight `own` [B, K, 1], its group's weighted sum and that of the weights."""
        return (centre * own + sums) / (own + weight)

    def combine(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        from lightvlm_fx.ops.segments import PADDING, same_image
        from lightvlm_fx.ops.tiles import pick, span, tiles

        hidden, size, score, rank, budget = view.hidden, view.size, view.score, view.rank, view.budget
        index, segment, left = view.index, view.segment, view.left
        is_centre = (rank >= budget - self.number(budget)) & (rank < budget) & (segment >= 0)
        centre = is_centre.gather(1, index) & (left >= 0)
        dropped = (rank >= budget) & (segment >= 0)
        kinds = torch.where(centre, left, PADDING)
        x, exact, s = self.compared(hidden), hidden.float(), segment.shape[1]
        kept, went, absorbed = pick(x, index), torch.zeros_like(segment), []  # `went` counts from 1 here
        for start, stop in tiles(index, index.shape[1], segment.numel()):
            rows = kinds[:, start:stop]
            first, last = span(rows, segment)
            if first == last:
                absorbed.append([x.new_zeros(*rows.shape, n) for n in (1, 1, x.shape[2])])
                continue
            alike = kept[:, start:stop] @ x[:, first:last].transpose(1, 2)  # [B, rows, columns]
            possible = same_image(rows, segment[:, first:last]) & dropped[:, None, first:last]
            best = alike.masked_fill_(~possible, NEVER).topk(min(self.group, last - first), dim=-1)
            theirs = score[:, None, first:last].expand_as(alike).gather(2, best.indices)
            weight = torch.where(best.values > NEVER, self.weights(best.values, theirs), 0.0)
            weight = torch.zeros_like(alike).scatter_(2, best.indices, weight)
            joined = (weight > 0).float()
            absorbed.append([weight.sum(-1, keepdim=True), joined @ size[:, first:last, None], weight @ exact[:, first:last]])
            by = torch.where(joined.sum(1) > 0, joined.argmax(1) + start + 1, 0)
            went = torch.where(went > 0, went, torch.nn.functional.pad(by, [first, s - last]))
        weight, more, sums = (torch.cat(parts, 1) for parts in zip(*absorbed, strict=True))
        own, mine = pick(score, index).clamp_min(1e-12).unsqueeze(-1), pick(hidden, index)
        merged = self.joined(mine.float(), own, sums, weight)
        merged = torch.where(weight > 0, merged.to(hidden.dtype), mine)
        grown, went = pick(size, index) + more.squeeze(-1), went - 1
        here = torch.arange(index.shape[1], device=index.device).expand_as(index)
        filler = (left == PADDING) & (segment.gather(1, index) != PADDING)  # dropped, though its slot is used
        return merged, grown, went.scatter(1, index, torch.where(filler, went.gather(1, index), here))
