"""Score: peaks; tokens with a high score that no token with a higher one resembles."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.similarity import directions, peaks


@torch.library.custom_op("lightvlm::score_peak", mutates_args=())
def score_peak(score: Tensor, hidden: Tensor, segment: Tensor, power: float) -> Tensor:
    """Score [B, S] float32: score^power x cosine distance to the nearest token of the image with a higher score; 0 for text.

    score [B, S] not negative, hidden [B, S, D], segment [B, S]. Of equal scores the earlier token counts as higher.
    The parallel, static form of greedy importance x diversity (ours, after density-peak clustering).
    """
    return peaks(score, directions(hidden, segment), segment, power, 0.0)


@score_peak.register_fake
def _(score, hidden, segment, power):
    return segment.new_empty(segment.shape, dtype=torch.float32)
