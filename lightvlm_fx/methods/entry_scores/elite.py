"""KV score: how much the few elite text queries look at each visual entry (AirCache, arXiv 2503.23956)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lightvlm_fx.frozen import Number
from lightvlm_fx.methods.base import ATTENTION, EntryScore, View

if TYPE_CHECKING:
    from torch import Tensor

MOST = 16  # elite queries; a number known beforehand keeps every shape known
Alpha = Annotated[Number, Field(gt=0, le=1)]


class Elite(EntryScore):
    """Elite are the text queries after the last visual token (only they see all of it) that the last query attends to with at least
    `alpha` of its largest weight among them. They attend to visual and elite keys alone; the score is their mean.

    The second result [B, 2] is the layer's strength, the mass that goes to visual keys, and the skewness of the scores, the adjusted
    Fisher-Pearson one. Our reading of the paper, which has no public code: heads averaged.
    """

    name = "elite"
    source = "arXiv 2503.23956"
    reads = ATTENTION
    one_choice = visual_only = statistics = True
    alpha: Alpha = 0.9

    @property
    def fewest(self) -> int:
        return MOST

    def prompt(self, view: View) -> tuple[Tensor, Tensor]:
        import torch

        from lightvlm_fx.ops.segments import per_group, scaled, text_after_pictures

        q, k, segment, scale, lowest = view.q, view.k, view.segment, view.scale, torch.finfo(torch.float32).min
        here = torch.arange(segment.shape[1], device=segment.device)
        visual = segment >= 0
        candidate = text_after_pictures(segment)  # [B, S]
        keys = scaled(k, scale)
        row = per_group(q[:, :, -1:].float(), k) @ keys
        weight = row.masked_fill(~candidate[:, None, None, None], lowest).softmax(-1).mean((1, 2)).squeeze(1) * candidate
        elite = candidate & (weight >= self.alpha * weight.amax(1, keepdim=True))
        rows = torch.topk(weight, min(MOST, segment.shape[1]), dim=1).indices  # [B, E]
        chosen = elite.gather(1, rows)
        picked = q.float().gather(2, rows[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
        elite = torch.zeros_like(elite).scatter_(1, rows, chosen)
        sees = (visual | elite)[:, None] & (here <= rows[..., None])  # [B, E, S]
        attended = (per_group(picked, k) @ keys).masked_fill(~sees[:, None, None], lowest).softmax(-1).mean((1, 2))
        score = (attended * chosen[..., None]).sum(1) / chosen.sum(1, keepdim=True).clamp_min(1) * visual
        n = visual.sum(1).float()
        mean = score.sum(1) / n.clamp_min(1)
        off = (score - mean[:, None]) * visual
        deviation = (off.square().sum(1) / (n - 1).clamp_min(1)).sqrt().clamp_min(1e-12)
        skewness = n / ((n - 1) * (n - 2)).clamp_min(1) * (off / deviation[:, None]).pow(3).sum(1)
        return score.unsqueeze(1), torch.stack([score.sum(1), skewness], 1)
