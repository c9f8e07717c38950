"""Where a dropped token goes: to the survivor of its image that it resembles most (ToMe's rule, arXiv 2210.09461, on a fixed set)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING
from lightvlm_fx.ops.similarity import directions, nearest
from lightvlm_fx.ops.tiles import pick, wanted


@torch.library.custom_op("lightvlm::nearest_survivor", mutates_args=())
def nearest_survivor(hidden: Tensor, segment: Tensor, index: Tensor, left: Tensor) -> Tensor:
    """For each token the survivor [B, S] it belongs to, as its place among them; -1 for nowhere.

    hidden [B, S, D], segment [B, S], index and left [B, K] from `select_tokens`. Survivors belong to themselves; others,
    fillers among them, to the survivor of the same image with the largest cosine: where a token goes must not depend on
    how long the other rows of the batch are.
    """
    x = directions(hidden, segment)
    filler = (left == PADDING) & (segment.gather(1, index) != PADDING)
    here = torch.arange(index.shape[1], device=index.device).expand_as(index)
    went = torch.full_like(segment, -1).scatter(1, index, torch.where(filler, -1, here))
    rows = wanted((went < 0) & (segment >= 0))
    own = pick(went, rows)
    own = torch.where(own < 0, nearest(pick(x, rows), pick(segment, rows), pick(x, index), left), own)
    return own if rows is None else went.scatter(1, rows, own)


@nearest_survivor.register_fake
def _(hidden, segment, index, left):
    return segment.new_empty(segment.shape)
