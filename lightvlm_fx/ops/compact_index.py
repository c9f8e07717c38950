"""Positions of survivors that are renumbered without gaps (PyramidDrop, arXiv 2410.17247)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING


@torch.library.custom_op("lightvlm::compact_index", mutates_args=())
def compact_index(segment: Tensor, left: Tensor) -> Tensor:
    """Index [B, K] into the tokens that arrived, whose positions the survivors take over.

    segment [B, S] before the cut, left [B, K] after it: the j-th survivor of a row gets the position of the
    row's j-th token that is not padding.
    """
    arrived = torch.sort((segment == PADDING).long(), dim=-1, stable=True).indices
    return arrived.gather(1, ((left != PADDING).long().cumsum(-1) - 1).clamp_min(0))


@compact_index.register_fake
def _(segment, left):
    return torch.empty_like(left)
