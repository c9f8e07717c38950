"""Gather of whatever crosses a cut with a token dimension."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("lightvlm::take_tokens", mutates_args=())
def take_tokens(x: Tensor, index: Tensor, batch_dim: int, dim: int) -> Tensor:
    """`x` with its token dimension `dim` replaced by the tokens `index` [B, K] of each row.

    `batch_dim` (before `dim`, size B or 1; -1: x has none and gets one in front) tells the rows apart. What a token has is
    moved as a whole: a gather would want an index for each number, and runtimes that write it out hold eight bytes for each.
    """
    if batch_dim < 0:
        x, batch_dim, dim = x.unsqueeze(0), 0, dim + 1
    shape = list(x.shape)
    shape[batch_dim], shape[dim] = index.shape
    if dim == x.ndim - 1 and not torch.compiler.is_exporting():  # one number a token
        view = [1] * x.ndim
        view[batch_dim], view[dim] = index.shape
        wide = [*shape[:dim], x.shape[dim]]
        return x.expand(wide).gather(dim, index.view(view).expand(shape))
    if len(index) == 1:
        return x.index_select(dim, index[0]).reshape(-1).view(shape)
    tokens = x.movedim((batch_dim, dim), (0, 1))
    if len(tokens) > 1:
        index = index + torch.arange(len(tokens), device=index.device).unsqueeze(1) * tokens.shape[1]
    taken = tokens.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)
    return taken.movedim((0, 1), (batch_dim, dim)).reshape(-1).view(shape)


@take_tokens.register_fake
def _(x, index, batch_dim, dim):
    shape = list(x.shape) if batch_dim >= 0 else [1, *x.shape]
    batch_dim, dim = (batch_dim, dim) if batch_dim >= 0 else (0, dim + 1)
    shape[batch_dim], shape[dim] = index.shape
    return x.new_empty(shape)
