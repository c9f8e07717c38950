"""Attention of all rows of a prompt, tile by tile: what several scores and budgets sum up."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lightvlm_fx.ops.segments import PADDING, per_group, scaled
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
    keys, here = scaled(k, scale), torch.arange(s, device=q.device)
    allowed_keys = (segment != PADDING)[:, None, :]
    for start, stop in tiles(q, s, q.shape[0] * q.shape[1] * s, first):
        last = stop if mask is None else s  # no row of the tile sees a later key
        if mask is None:
            seen = (here[None, :last] <= here[start:stop, None])[None] & allowed_keys[..., :last]
        else:
            part = mask[:, 0, start:stop]
            seen = (part if part.dtype == torch.bool else part >= 0) & allowed_keys
        bias = seen.logical_not().float() * torch.finfo(torch.float32).min  # [B, tile, last]: cheaper than filling the logits of all heads
        logits = per_group(q[:, :, start:stop].float(), k) @ keys[..., :last] + bias[:, None, None]  # [B, G, H/G, tile, last]
        weight = rows[:, None, start:stop].float()
        total += F.pad((weight[:, None, None] @ logits.softmax(-1)).squeeze(3).mean(2), [0, s - last])
        seen_by += F.pad((weight @ seen.float()).squeeze(1), [0, s - last])
    return total, seen_by


def logits(
    q: Tensor, k: Tensor, segment: Tensor, mask: Tensor | None, scale: float
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Of every tile of rows its begin, its end, its logits [B, G, H/G, tile, S], and which keys it sees [B, tile, S]; others are lowest.

    q [B, H, S, d], k [B, G, S, d], segment [B, S]; mask [B, 1, S, S] replaces the causal rule where given.
    """
    s = segment.shape[1]
    here = torch.arange(s, device=segment.device)
    real = segment != PADDING
    keys = scaled(k, scale)
    for start, stop in tiles(q, s, q.shape[0] * q.shape[1] * s):
        if mask is None:
            seen = (here <= here[start:stop, None])[None] & real[:, None]
        else:
            part = mask[:, 0, start:stop]
            seen = (part if part.dtype == torch.bool else part >= 0) & real[:, None]
        products = per_group(q[:, :, start:stop].float(), k) @ keys
        yield start, stop, products.masked_fill(~seen[:, None, None], torch.finfo(torch.float32).min), seen


def probabilities(
    q: Tensor, k: Tensor, segment: Tensor, mask: Tensor | None, scale: float
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """The same with attention in the place of logits."""
    for start, stop, products, seen in logits(q, k, segment, mask, scale):
        yield start, stop, products.softmax(-1), seen
