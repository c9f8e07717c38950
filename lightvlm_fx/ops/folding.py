"""Folding: tokens at even places join their nearest ones at odd places, again and again, until few enough are left (ToMe, FOLDER)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.compat import hint
from lightvlm_fx.ops.merge_tokens import sums
from lightvlm_fx.ops.segments import PADDING, over_image, rank_in_segment, unit
from lightvlm_fx.ops.similarity import nearest
from lightvlm_fx.ops.tiles import pick, readable, wanted


def folded(
    hidden: Tensor, segment: Tensor, budget: Tensor, folds: int, penalty: Tensor | None = None, first: Tensor | int = 0
) -> Tensor:
    """Of each token of hidden [B, S, D] the place [B, S] of the token that it became part of; its own, if none.

    segment [B, S]; of each image `budget` [B, S] tokens are left, where `folds` rounds suffice. `penalty` [B, S] is taken off the
    likeness of a token that would move; its mean goes on with what becomes one. `first` [B, 1]: whether the first token moves (0), or
    the second (1).
    """
    s = segment.shape[1]
    here = torch.arange(s, device=segment.device).expand_as(segment)
    root, kinds, whole = here, segment, hidden.float()  # `whole`: the sum of all that a token stands for
    total = one = torch.ones_like(segment, dtype=torch.float32)
    for _ in range(min(folds, hint(s).bit_length())):
        count = over_image(kinds >= 0, kinds).long()
        many = torch.where(kinds >= 0, torch.minimum(count // 2, count - budget), 0)  # what leaves the image now
        if readable(many) and not bool((many > 0).any()):
            break
        odd = rank_in_segment(torch.zeros_like(one), kinds) % 2 != first
        moves, stays = torch.where(odd, PADDING, kinds), torch.where(odd, kinds, PADDING)
        x, rows, columns = unit(whole), wanted(moves >= 0), wanted(stays >= 0)
        to = nearest(pick(x, rows), pick(moves, rows), pick(x, columns), pick(stays, columns))
        if rows is not None and columns is not None:
            to = torch.full_like(here, -1).scatter(1, rows, torch.where(to < 0, -1, columns.gather(1, to.clamp_min(0))))
        alike = (x * pick(x, to.clamp_min(0))).sum(-1)
        if penalty is not None:
            alike = alike - penalty / total
        leaves = (to >= 0) & (moves >= 0) & (rank_in_segment(alike, moves) < many)
        target = torch.where(leaves, to, here)
        whole = sums(whole, one, target, s)[0]
        if penalty is not None:
            penalty, total = (sums(x.unsqueeze(-1), one, target, s)[0].squeeze(-1) for x in (penalty, total))
            total = total.clamp_min(1)  # of those that left
        root, kinds = target.gather(1, root), torch.where(leaves, PADDING, kinds)
    return root
