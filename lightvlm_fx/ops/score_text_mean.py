"""Score: attention from the text that follows the picture, averaged over its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.score_received import column_sums, text_rows


@torch.library.custom_op("lightvlm::score_text_mean", mutates_args=())
def score_text_mean(q: Tensor, k: Tensor, segment: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Score [B, S]: mean attention row of the text tokens behind the first visual token.

    q [B, H, S, d], k [B, G, S, d], segment [B, S]; mask [B, 1, S, S] (boolean or additive) replaces the
    causal rule where given.
    """
    return column_sums(q, k, segment, mask, scale, text_rows(segment))[0].mean(1)


@score_text_mean.register_fake
def _(q, k, segment, mask, scale):
    return segment.new_empty(segment.shape, dtype=torch.float32)
