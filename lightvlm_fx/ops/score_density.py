"""Score: how many tokens of the image are like this one (the density of density-peak clustering)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import same_image

WIDTH = 0.1  # cosine distance at which a token counts as 1/e of a neighbour


@torch.library.custom_op("lightvlm::score_density", mutates_args=())
def score_density(alike: Tensor, segment: Tensor) -> Tensor:
    """Score [B, S] float32: sum over the other tokens of the image of exp(-cosine distance / WIDTH); 0 for text.

    alike [B, S, S] from `similarity`, segment [B, S]. As the score of `score_peak` (with a base of 1: the token itself) it picks
    the middle of every group of like tokens (after Rodriguez and Laio, Science 344, 2014). It asks no question: the same picture
    keeps the same tokens.
    """
    near = torch.exp((alike.float() - 1) / WIDTH)
    here = torch.arange(segment.shape[1], device=segment.device)
    others = here[:, None] != here  # not itself, a one beside which the others would lose their digits
    return (near * (same_image(segment, segment) & others).float()).sum(-1)  # a product: runtimes select several times slower


@score_density.register_fake
def _(alike, segment):
    return segment.new_empty(segment.shape, dtype=torch.float32)
