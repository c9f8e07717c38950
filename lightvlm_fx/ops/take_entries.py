"""Gather of cache entries."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("lightvlm::take_entries", mutates_args=())
def take_entries(x: Tensor, index: Tensor) -> Tensor:
    """`x`, keys or values [B, G, S, d] or scores [B, G, S], at `index` [B, G, K] (or [B, 1, K], shared by the heads)."""
    index = index.expand(x.shape[0], x.shape[1], -1)
    return x.gather(2, index if x.ndim == 3 else index.unsqueeze(-1).expand(*index.shape, x.shape[3]))


@take_entries.register_fake
def _(x, index):
    return x.new_empty(*x.shape[:2], index.shape[2], *x.shape[3:])
