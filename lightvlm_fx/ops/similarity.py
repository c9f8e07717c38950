"""How alike tokens are: one matrix product, shared by the scores `density` and `peak` and the combine `merge`."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import unit


@torch.library.custom_op("lightvlm::similarity", mutates_args=())
def similarity(hidden: Tensor, segment: Tensor, index: Tensor | None) -> Tensor:
    """Cosines [B, S, K] of tokens to those at `index` [B, K], or [B, S, S] to all, in the dtype of `hidden`.

    hidden [B, S, D] is centred on the row's mean visual token first (segment [B, S] tells which are), because
    what hidden states have in common would hide how they differ.
    """
    visual = (segment >= 0).unsqueeze(-1).float()
    mean = (hidden.float() * visual).sum(1, keepdim=True) / visual.sum(1, keepdim=True).clamp_min(1)
    x = unit(hidden.float() - mean).to(hidden.dtype)
    others = x if index is None else x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))
    return x @ others.transpose(1, 2)


@similarity.register_fake
def _(hidden, segment, index):
    others = segment if index is None else index
    return hidden.new_empty(*segment.shape, others.shape[1])
