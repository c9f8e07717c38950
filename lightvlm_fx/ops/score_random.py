"""Score: pseudo-random numbers, the baseline that every method must beat."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("lightvlm::score_random", mutates_args=())
def score_random(hidden: Tensor, seed: int) -> Tensor:
    """Score [B, S] in [0, 1): a hash of each hidden state's bits and `seed`.

    hidden [B, S, D]. Reproducible, independent of the row's place in the batch, different for every picture.
    """
    bits = hidden.float().contiguous().view(torch.int32).to(torch.int64)
    odd = torch.arange(1, 2 * hidden.shape[2], 2, device=hidden.device) * 40503
    x = ((bits & 0xFFFF) * odd + (bits >> 16) * (odd + 2)).sum(-1) + seed * 2654435761
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        x = x & 0xFFFFFFFF
        x = (x ^ (x >> shift)) * factor
    x = (x & 0xFFFFFFFF) ^ ((x & 0xFFFFFFFF) >> 15)
    return (x & 0xFFFFFF).float() / 2**24


@score_random.register_fake
def _(hidden, seed):
    return hidden.new_empty(hidden.shape[:2], dtype=torch.float32)
