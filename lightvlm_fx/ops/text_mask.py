"""What text sees that asks alone (ShortV, arXiv 2504.00502)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("lightvlm::text_mask", mutates_args=())
def text_mask(segment: Tensor, index: Tensor) -> Tensor:
    """What the tokens at `index` [B, T] see under a causal rule: boolean [B, 1, T, S]. segment [B, S]: how many tokens there are."""
    here = torch.arange(segment.shape[1], device=segment.device)
    return (here <= index.unsqueeze(-1)).unsqueeze(1)


@text_mask.register_fake
def _(segment, index):
    b, t = index.shape
    return index.new_empty(b, 1, t, segment.shape[1], dtype=torch.bool)
