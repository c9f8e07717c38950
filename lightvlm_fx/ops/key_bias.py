"""Proportional attention: a merged key counts as often as the tokens it stands for (ToMe, arXiv 2210.09461)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("lightvlm::key_bias", mutates_args=())
def key_bias(mask: Tensor | None, size: Tensor) -> Tensor:
    """Additive mask float32 [B, 1, K, K]: log(size) on every key that may be seen, -inf on the others.

    `size` [B, K] float32 are the original tokens of each key; `mask` [B, 1, K, K], boolean or additive, says what
    may be seen (None: the causal rule). Merging equal keys with this bias leaves attention as it was.
    """
    bias = size.clamp_min(1).log()[:, None, None, :]
    if mask is None:
        n = size.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool, device=size.device).tril()[None, None]
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return mask.float() + bias


@key_bias.register_fake
def _(mask, size):
    return size.new_empty(size.shape[0], 1, size.shape[1], size.shape[1])
