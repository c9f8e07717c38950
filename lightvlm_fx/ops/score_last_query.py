"""Score: attention that the last prompt token pays (FastV, arXiv 2403.06764; FEATHER without RoPE)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, per_group


@torch.library.custom_op("lightvlm::score_last_query", mutates_args=())
def score_last_query(q: Tensor, k: Tensor, segment: Tensor, scale: float, image_softmax: bool) -> Tensor:
    """Score [B, S]: softmax of the last row of q k^T, mean over heads.

    q [B, H, S, d], k [B, G, S, d], segment [B, S]. One row is computed, never S x S. The softmax runs over
    all keys but padding, or over visual keys only (`image_softmax`).
    """
    last = per_group(q[:, :, -1:].float(), k).squeeze(3)
    logits = last @ k.float().transpose(2, 3) * scale  # [B, G, H/G, S]
    counted = segment >= 0 if image_softmax else segment != PADDING
    logits = logits.masked_fill(~counted[:, None, None], torch.finfo(torch.float32).min)
    return logits.softmax(-1).mean((1, 2))


@score_last_query.register_fake
def _(q, k, segment, scale, image_softmax):
    return segment.new_empty(segment.shape, dtype=torch.float32)
