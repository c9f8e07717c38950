"""Gather of whatever crosses a cut with a token dimension."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("lightvlm::take_tokens", mutates_args=())
def take_tokens(x: Tensor, index: Tensor, batch_dim: int, dim: int) -> Tensor:
    """`x` with its token dimension `dim` replaced by the tokens `index` [B, K] of each row.

    `batch_dim` (before `dim`, size B or 1; -1: x has none and gets one in front) tells the rows apart.
    """
    if batch_dim < 0:
        x, batch_dim, dim = x.unsqueeze(0), 0, dim + 1
    shape = list(x.shape)
    shape[batch_dim] = index.shape[0]
    x = x.expand(shape)
    view = [1] * x.ndim
    view[batch_dim], view[dim] = index.shape
    shape[dim] = index.shape[1]
    return x.gather(dim, index.view(view).expand(shape))


@take_tokens.register_fake
def _(x, index, batch_dim, dim):
    shape = list(x.shape) if batch_dim >= 0 else [1, *x.shape]
    batch_dim, dim = (batch_dim, dim) if batch_dim >= 0 else (0, dim + 1)
    shape[batch_dim], shape[dim] = index.shape
    return x.new_empty(shape)
