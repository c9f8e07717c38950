"""Putting text back among the visual tokens of its row (ShortV, arXiv 2504.00502)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import TEXT
from lightvlm_fx.ops.tiles import pick


@torch.library.custom_op("lightvlm::put_tokens", mutates_args=())
def put_tokens(hidden: Tensor, part: Tensor, index: Tensor, segment: Tensor) -> Tensor:
    """`hidden` [B, S, D] with its text replaced by that of `part` [B, T, D], which stands at `index` [B, T]; segment [B, S]."""
    here = torch.arange(index.shape[1], device=index.device).expand_as(index)
    place = torch.zeros_like(segment).scatter(1, index, here)
    return torch.where((segment == TEXT).unsqueeze(-1), pick(part, place), hidden)


@put_tokens.register_fake
def _(hidden, part, index, segment):
    return torch.empty_like(hidden)
