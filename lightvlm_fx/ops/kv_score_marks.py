"""KV score: how often an entry was important of late (Scissorhands, arXiv 2305.17118)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, per_group
from lightvlm_fx.ops.tiles import tiles


@torch.library.custom_op("lightvlm::kv_score_marks", mutates_args=())
def kv_score_marks(q: Tensor, k: Tensor, segment: Tensor, scale: float, window: int) -> Tensor:
    """Score [B, G, S] float32: of the last `window` rows, the share of heads that gave the entry a fair share or more.

    q [B, H, S, d], k [B, G, S, d], segment [B, S]. A fair share is one over the number of entries the row sees.
    Older rows count less, by 1 - 1/window a row, as in the decoding steps that carry the score on.
    """
    s = segment.shape[1]
    first = max(0, s - window)
    here = torch.arange(s, device=segment.device)
    valid = segment != PADDING
    keys, score = k.float().transpose(2, 3).unsqueeze(2), torch.zeros(k.shape[:3], dtype=torch.float32, device=k.device)
    for start, stop in tiles(q, s, q.shape[0] * q.shape[1] * s, first):
        seen = (here <= here[start:stop, None]) & valid[:, None]  # [B, rows, S]
        logits = per_group(q[:, :, start:stop].float(), k) @ keys * scale
        attended = logits.masked_fill(~seen[:, None, None], torch.finfo(torch.float32).min).softmax(-1)
        fair = 1 / seen.sum(-1).clamp_min(1).float()[:, None, None, :, None]
        marks = ((attended >= fair) & seen[:, None, None]).float().mean(2)  # [B, G, rows, S]
        decay = (1 - 1 / window) ** (s - 1 - here[start:stop]).float()
        score = score + (marks * (decay * valid[:, start:stop])[:, None, :, None]).sum(2)
    return score


@kv_score_marks.register_fake
def _(q, k, segment, scale, window):
    return k.new_empty(k.shape[:3], dtype=torch.float32)
