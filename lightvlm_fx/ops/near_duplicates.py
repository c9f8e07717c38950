"""Taking near-duplicates away a few at a time, until few enough tokens are left: VisPruner's way to tokens unlike each other."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.compat import hint
from lightvlm_fx.ops.pick_apart import CELLS
from lightvlm_fx.ops.segments import PADDING, over_image, rank_in_segment, same_image
from lightvlm_fx.ops.similarity import nearest
from lightvlm_fx.ops.tiles import pick, readable, wanted

ROUNDS = 64  # of larger pictures more leave at a time, so that no more are needed


def without_duplicates(x: Tensor, segment: Tensor, place: Tensor, budget: Tensor, group: int) -> Tensor:
    """Which tokens [B, S] are left where of each image's candidates `budget` [B, S] are to be.

    x [B, S, D] of length one. `place` [B, S]: of a candidate its place among those of its image, -1 of what is none. In each round the
    candidates at even places meet those at odd ones, and of the even ones the `group` that resemble theirs most leave (a 64th of all
    candidates, where that is more; no more than there are). The others line up anew: even ones by falling likeness, then odd ones.
    """
    s = segment.shape[1]
    count = torch.where(segment >= 0, over_image(place >= 0, segment).long(), 0)
    many = ((count + ROUNDS - 1) // ROUNDS).clamp_min(group)
    whole = torch.compiler.is_exporting() or segment.shape[0] * s * s <= CELLS
    alike = x @ x.transpose(1, 2) if whole else None
    longest = hint(s)
    for _ in range(min(ROUNDS, -(-longest // group)) + max(group, -(-longest // ROUNDS)).bit_length()):  # the last ones halve few
        evens = (count + 1) // 2
        leave = torch.minimum(torch.minimum(count - budget, many), evens).clamp_min(0)  # of each image
        if readable(leave) and not bool((leave > 0).any()):
            break
        even, odd = (place >= 0) & (place % 2 == 0), (place >= 0) & (place % 2 == 1)
        rank = rank_in_segment(_likeness(x, alike, segment, even, odd), torch.where(even, segment, PADDING))
        ahead = torch.where(even, rank - leave, evens - leave + place // 2)
        place = torch.where(leave > 0, torch.where(even | odd, ahead.clamp_min(-1), -1), place)
        count = count - leave
    return place >= 0


def _likeness(x: Tensor, alike: Tensor | None, segment: Tensor, even: Tensor, odd: Tensor) -> Tensor:
    """Of each `even` token the cosine [B, S] with the `odd` one of its image that it resembles most; -2 where there is none."""
    rows, columns = wanted(even), wanted(odd)
    of, among = (pick(torch.where(which, segment, PADDING), at) for which, at in ((even, rows), (odd, columns)))
    if alike is None:
        to = nearest(pick(x, rows), of, pick(x, columns), among)
        found = torch.where(to < 0, -2.0, (pick(x, rows) * pick(pick(x, columns), to.clamp_min(0))).sum(-1))
    else:
        if rows is not None and columns is not None:
            alike = pick(alike, rows).gather(2, columns.unsqueeze(1).expand(-1, rows.shape[1], -1))
        pairs = torch.where(same_image(of, among), alike, -2.0)
        found = pairs.amax(2) if pairs.shape[2] else pairs.new_full(pairs.shape[:2], -2.0)
    return found if rows is None else torch.full_like(x[..., 0], -2.0).scatter(1, rows, found)
