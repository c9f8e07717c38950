"""Score: density peaks; tokens in the middle of many like them, one of every group before a second."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.similarity import density, directions, peaks


@torch.library.custom_op("lightvlm::score_density", mutates_args=())
def score_density(hidden: Tensor, segment: Tensor, power: float) -> Tensor:
    """Score [B, S] float32: (1 + density)^power x cosine distance to the nearest denser token of the image; 0 for text.

    hidden [B, S, D], segment [B, S]. The density of a token is the sum over the others of its image of exp(-cosine distance / 0.1);
    the one is the token itself. Of every group of like tokens the middle scores highest (after Rodriguez and Laio, Science 344,
    2014). It asks no question: the same picture keeps the same tokens.
    """
    x = directions(hidden, segment)
    return peaks(density(x, segment), x, segment, power, 1.0)


@score_density.register_fake
def _(hidden, segment, power):
    return segment.new_empty(segment.shape, dtype=torch.float32)
