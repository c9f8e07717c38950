"""KV score: attention that each entry receives from some rows of the prompt, per KV head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightvlm_fx.ops.score_received import column_sums
from lightvlm_fx.ops.segments import PADDING, TEXT


@torch.library.custom_op("lightvlm::kv_score_rows", mutates_args=())
def kv_score_rows(
    q: Tensor, k: Tensor, segment: Tensor, mask: Tensor | None, scale: float, rows: str, window: int, kernel: int
) -> Tensor:
    """Score [B, G, S] float32: column sums of the attention matrix, mean over the heads of each KV head.

    q [B, H, S, d], k [B, G, S, d], segment [B, S]; mask [B, 1, S, S] replaces the causal rule. `rows`: "attention",
    all of them (H2O, arXiv 2306.14048); "window", the last `window`, then averaged over `kernel` neighbouring keys
    (SnapKV, 2404.14469); "text", the text behind the last visual token (VL-Cache, 2410.23317).
    """
    valid, s = segment != PADDING, segment.shape[1]
    weight, first = valid, 0
    if rows == "window":
        first = max(0, s - window)
    elif rows == "text":
        place = torch.arange(s, device=segment.device)
        last = torch.where(segment >= 0, place, -1).amax(1, keepdim=True)
        weight = (segment == TEXT) & (place > last)
    score, _ = column_sums(q, k, segment, mask, scale, weight.float(), first)
    if rows == "window" and kernel > 1:
        score = F.avg_pool1d(score.masked_fill(~valid[:, None], 0.0), kernel, stride=1, padding=kernel // 2)
    return score


@kv_score_rows.register_fake
def _(q, k, segment, mask, scale, rows, window, kernel):
    return k.new_empty(k.shape[:3], dtype=torch.float32)
