"""KV score: how much the few elite text queries look at each visual entry (AirCache, arXiv 2503.23956)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import TEXT, per_group

MOST = 16  # elite queries; a number known beforehand keeps every shape known
LOWEST = torch.finfo(torch.float32).min


@torch.library.custom_op("lightvlm::kv_score_elite", mutates_args=())
def kv_score_elite(q: Tensor, k: Tensor, segment: Tensor, scale: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Score [B, 1, S] of visual entries, and of each row the layer's strength and skewness [B, 2].

    q [B, H, S, d], k [B, G, S, d], segment [B, S]. Elite are the text queries behind the last visual token (only they
    see all of it) that the last query attends to with at least `alpha` of its largest weight among them. They attend
    to visual and elite keys alone; the score is their mean. Strength is the mass that goes to visual keys, skewness
    the adjusted Fisher-Pearson one of the scores. Our reading of the paper, which has no public code: heads averaged.
    """
    here = torch.arange(segment.shape[1], device=segment.device)
    visual = segment >= 0
    last = torch.where(visual, here, -1).amax(1, keepdim=True)
    candidate = (segment == TEXT) & (here > last)  # [B, S]
    keys = k.float().transpose(2, 3).unsqueeze(2)
    row = per_group(q[:, :, -1:].float(), k) @ keys * scale
    weight = row.masked_fill(~candidate[:, None, None, None], LOWEST).softmax(-1).mean((1, 2)).squeeze(1) * candidate
    elite = candidate & (weight >= alpha * weight.amax(1, keepdim=True))
    rows = torch.topk(weight, min(MOST, segment.shape[1]), dim=1).indices  # [B, E]
    chosen = elite.gather(1, rows)
    picked = q.float().gather(2, rows[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
    elite = torch.zeros_like(elite).scatter_(1, rows, chosen)
    sees = (visual | elite)[:, None] & (here <= rows[..., None])  # [B, E, S]
    attended = (per_group(picked, k) @ keys * scale).masked_fill(~sees[:, None, None], LOWEST).softmax(-1).mean((1, 2))
    score = (attended * chosen[..., None]).sum(1) / chosen.sum(1, keepdim=True).clamp_min(1) * visual
    n = visual.sum(1).float()
    mean = score.sum(1) / n.clamp_min(1)
    off = (score - mean[:, None]) * visual
    deviation = (off.square().sum(1) / (n - 1).clamp_min(1)).sqrt().clamp_min(1e-12)
    skewness = n / ((n - 1) * (n - 2)).clamp_min(1) * (off / deviation[:, None]).pow(3).sum(1)
    return score.unsqueeze(1), torch.stack([score.sum(1), skewness], 1)


@kv_score_elite.register_fake
def _(q, k, segment, scale, alpha):
    b, s = segment.shape
    return q.new_empty(b, 1, s, dtype=torch.float32), q.new_empty(b, 2, dtype=torch.float32)
