"""Score: pseudo-random numbers, the baseline that every method must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import rank_in_segment


@torch.library.custom_op("lightvlm::score_random", mutates_args=())
def score_random(segment: Tensor, seed: int) -> Tensor:
    """Score [B, S] in [0, 1): a hash of each token's place in its image, the image's number, and `seed`.

    segment [B, S]. The same on every machine and back end, and independent of the row's place in the batch;
    so every picture of one size loses the same tokens, and a fair baseline averages over seeds.
    """
    place = rank_in_segment(torch.zeros_like(segment, dtype=torch.float32), segment)
    x = place * 2654435761 + segment.clamp_min(0) * 40503 + (seed * 2246822519 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x45D9F3B), (15, 0x2C1B3C6D), (12, 0x297A2D39)):
        x = x & 0xFFFFFFFF
        x = (x ^ (x >> shift)) * factor
    x = (x & 0xFFFFFFFF) ^ ((x & 0xFFFFFFFF) >> 15)
    return (x & 0xFFFFFF).float() / 2**24


@score_random.register_fake
def _(segment, seed):
    return segment.new_empty(segment.shape, dtype=torch.float32)
