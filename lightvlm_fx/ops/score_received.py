"""Score: attention received from every token (column sums of the attention matrix)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightvlm_fx.ops.segments import PADDING, TEXT, per_group
from lightvlm_fx.ops.tiles import tiles


def column_sums(
    q: Tensor, k: Tensor, segment: Tensor, mask: Tensor | None, scale: float, rows: Tensor, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Weighted column sums [B, G, S] of the causal attention matrix, mean over each group's heads, tile by tile;
    and of the mask [B, S].

    `rows` [B, S] weighs each query row (0 for one that sees no key), those before `first` are not looked at;
    `mask` [B, 1, S, S] replaces the causal rule where given.
    """
    s = q.shape[2]
    total = torch.zeros(q.shape[0], k.shape[1], s, dtype=torch.float32, device=q.device)
    seen_by = torch.zeros(q.shape[0], s, dtype=torch.float32, device=q.device)
    keys, here = k.float().transpose(2, 3).unsqueeze(2), torch.arange(s, device=q.device)
    allowed_keys = (segment != PADDING)[:, None, :]
    for start, stop in tiles(q, s, q.shape[0] * q.shape[1] * s, first):
        last = stop if mask is None else s  # no row of the tile sees a later key
        if mask is None:
            seen = (here[None, :last] <= here[start:stop, None])[None] & allowed_keys[..., :last]
        else:
            part = mask[:, 0, start:stop]
            seen = (part if part.dtype == torch.bool else part >= 0) & allowed_keys
        bias = seen.logical_not().float() * torch.finfo(torch.float32).min  # [B, tile, last]: cheaper than filling the logits of all heads
        logits = per_group(q[:, :, start:stop].float() * scale, k) @ keys[..., :last] + bias[:, None, None]  # [B, G, H/G, tile, last]
        weight = rows[:, None, start:stop].float()
        total += F.pad((weight[:, None, None] @ logits.softmax(-1)).squeeze(3).mean(2), [0, s - last])
        seen_by += F.pad((weight @ seen.float()).squeeze(1), [0, s - last])
    return total, seen_by


@torch.library.custom_op("lightvlm::score_received", mutates_args=())
def score_received(q: Tensor, k: Tensor, segment: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Score [B, S]: attention received, divided by the number of rows that can see the token.

    q [B, H, S, d], k [B, G, S, d], segment [B, S]; mask [B, 1, S, S] (boolean or additive) replaces the
    causal rule where given. The division removes the bias towards early tokens.
    """
    total, seen_by = column_sums(q, k, segment, mask, scale, (segment != PADDING).float())
    return total.mean(1) / seen_by.clamp_min(1)


@score_received.register_fake
def _(q, k, segment, mask, scale):
    return segment.new_empty(segment.shape, dtype=torch.float32)


def text_rows(segment: Tensor) -> Tensor:
    """Weight [B, S] of each text row after the row's first visual token; each batch row sums to one."""
    after = (segment >= 0).cumsum(1) > 0
    rows = ((segment == TEXT) & after).float()
    return rows / rows.sum(1, keepdim=True).clamp_min(1)
