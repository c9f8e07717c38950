"""KV score: density peaks among an image's entries, by what their values hold."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING
from lightvlm_fx.ops.similarity import density, directions, peaks

POWER = 0.5  # of the density, as in a cut


@torch.library.custom_op("lightvlm::kv_score_density", mutates_args=())
def kv_score_density(v: Tensor, segment: Tensor, shared: bool) -> Tensor:
    """Score [B, G, S] float32 (`shared`: [B, 1, S], by the values of all heads) of visual entries; text, the newer the higher, from 0.

    v [B, G, S, d], segment [B, S]. Density^0.5 x cosine distance to the nearest denser entry of the image (`score_density`):
    the picture's contents are covered, whatever the question was.
    """
    x = heads_as_rows(v, shared)
    rows = segment.repeat_interleave(x.shape[0] // len(segment), 0)
    x = directions(x, rows)
    score = peaks(density(x, rows), x, rows, POWER, 1.0)
    nth = (rows != PADDING).cumsum(1) - 1  # in its row: a column would count padding
    return torch.where(rows >= 0, score, nth.float()).view(len(segment), -1, rows.shape[1])


@kv_score_density.register_fake
def _(v, segment, shared):
    return v.new_empty(v.shape[0], 1 if shared else v.shape[1], v.shape[2], dtype=torch.float32)


def heads_as_rows(x: Tensor, shared: bool) -> Tensor:
    """Entries [B, G, S, d] as [B * G, S, d], or side by side as [B, S, G * d] where the heads share a choice."""
    return x.transpose(1, 2).flatten(2) if shared else x.flatten(0, 1)
