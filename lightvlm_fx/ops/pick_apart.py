"""Picking tokens one by one, each as far as can be from those that were picked: what scores by diversity share."""

from __future__ import annotations

import torch
from torch import SymInt, Tensor

from lightvlm_fx.compat import hint, settled
from lightvlm_fx.ops.segments import same_image
from lightvlm_fx.ops.tiles import readable, tiles

SPANNED = 1e-5  # of a squared length: what rounding leaves of a token that the picked ones span
FAR = 4.0  # above every distance of 1 - cosine
CELLS = 2**24  # numbers of a matrix of distances that is held; above, each pick computes its own row


def picks(budget: Tensor, segment: Tensor, stay: int) -> int:
    """How many picks every row needs at most: budget [B, S] of each token's image, of the `stay` tokens that a cut leaves.

    Where the host may not read values it is `stay`; a graph of symbolic length holds as many as at the longest.
    """
    if readable(segment):
        firsts = torch.zeros_like(segment, dtype=torch.bool)
        firsts[:, 1:] = segment[:, 1:] != segment[:, :-1]
        firsts[:, 0] = True
        return int((budget * (firsts & (segment >= 0))).sum(1).max())
    count = settled(stay)
    return hint(count) if isinstance(count, SymInt) else int(count)


def nearest_distance(x: Tensor, segment: Tensor) -> Tensor:
    """Distance [B, S] of each token to the nearest other one of its image, FAR where there is none; x [B, S, D] of length one."""
    here, found = torch.arange(x.shape[1], device=x.device), []
    for start, stop in tiles(x, x.shape[1], x.shape[0] * x.shape[1]):
        apart = 1 - x[:, start:stop] @ x.transpose(1, 2)
        other = same_image(segment[:, start:stop], segment) & (here[start:stop, None] != here)
        found.append(torch.where(other, apart, FAR).amin(2))
    return torch.cat(found, 1)


def pick_apart(x: Tensor, segment: Tensor, budget: Tensor, stay: int, first: Tensor, weight: Tensor | None = None) -> Tensor:
    """The order of the picks as scores [B, S]: S for the first, S - 1 for the next, 0 for what is not picked.

    Of each image the token with the largest `first` [B, S] comes first, then always the one whose distance 1 - cosine to the nearest
    that was picked, times `weight` [B, S] if given, is largest. x [B, S, D] float32 of length one; `budget` [B, S] of its image.
    """
    b, s = segment.shape
    whole = torch.compiler.is_exporting() or b * s * s <= CELLS
    apart = 1 - x @ x.transpose(1, 2) if whole else None
    used = torch.zeros_like(segment)
    order = torch.zeros(b, s, dtype=torch.float32, device=x.device)
    nearest = torch.full_like(order, FAR)
    for number in range(picks(budget, segment, stay)):
        key = nearest if weight is None else nearest * weight
        key = torch.where(used > 0, key, first + 2 * FAR)  # images without a pick come first
        possible = (segment >= 0) & (order == 0) & (used < budget)
        best = torch.where(possible, key, -1.0).max(1, keepdim=True)
        at = best.indices.unsqueeze(-1)  # [B, 1, 1]
        if apart is not None:
            row = apart.gather(1, at.expand(-1, 1, s)).squeeze(1)
        else:
            row = 1 - (x @ x.gather(1, at.expand(-1, 1, x.shape[2])).transpose(1, 2)).squeeze(2)
        mine = (segment == segment.gather(1, best.indices)) & (best.values >= 0)
        nearest = torch.where(mine, torch.minimum(nearest, row), nearest)
        used = used + mine.long()
        order = torch.where(best.values >= 0, order.scatter(1, best.indices, float(number) - s), order)
    return -order


def pick_volume(x: Tensor, segment: Tensor, budget: Tensor, stay: int) -> Tensor:
    """The order of the picks as scores [B, S]: S for the first, S - 1 for the next, 0 for what is not picked.

    Of each image always the token that adds most to the volume that the picked ones span: the longest, less its part in their space.
    This is the greedy choice for the determinant of x x^T. x [B, S, D] float32, `budget` [B, S] of its image; ties to the earlier token.
    """
    b, s = segment.shape
    used, order = torch.zeros_like(segment), torch.zeros(b, s, dtype=torch.float32, device=x.device)
    left = (x * x).sum(2)  # squared length of what is outside the space of the picked ones
    least, parts = left * SPANNED, left[:, None]  # `parts` [B, number, S] inside of it, along each direction in turn
    for number in range(picks(budget, segment, stay)):
        possible = (segment >= 0) & (order == 0) & (used < budget)
        best = torch.where(possible, torch.where(left > least, left, 0.0), -1.0).max(1, keepdim=True)
        at = best.indices.unsqueeze(-1)
        along = x @ x.gather(1, at.expand(-1, 1, x.shape[2])).transpose(1, 2)  # [B, S, 1]
        if number:
            along = along - parts.transpose(1, 2) @ parts.gather(2, at.expand(-1, number, 1))
        mine = (segment == segment.gather(1, best.indices)) & (best.values >= 0)
        part = torch.where(mine & (best.values > 0), along.squeeze(2) / best.values.clamp_min(1e-30).sqrt(), 0.0)
        left, parts = left - part * part, torch.cat([parts, part[:, None]], 1) if number else part[:, None]
        used = used + mine.long()
        order = torch.where(best.values >= 0, order.scatter(1, best.indices, float(number) - s), order)
    return -order
