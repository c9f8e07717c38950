"""An attention mask with the survivors that are only filling hidden from every query."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING


@torch.library.custom_op("lightvlm::mask_out", mutates_args=())
def mask_out(mask: Tensor, left: Tensor) -> Tensor:
    """`mask` [B, 1, K, K] (boolean or additive) with the keys closed that `left` [B, K] calls padding."""
    real = (left != PADDING)[:, None, None, :]
    if mask.dtype == torch.bool:
        return mask & real
    return torch.where(real, mask, torch.finfo(mask.dtype).min)


@mask_out.register_fake
def _(mask, left):
    return mask.new_empty(torch.broadcast_shapes(mask.shape, (left.shape[0], 1, 1, left.shape[1])))
