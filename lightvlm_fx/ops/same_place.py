"""Tokens of one place of a picture, or of a video's frames."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, same_image, unit
from lightvlm_fx.ops.tiles import pick, tiles


def same_place(place: Tensor, segment: Tensor, index: Tensor, left: Tensor, earlier: bool = False) -> Tensor:
    """For each token the last survivor [B, S] of its image with the same `place` [B, S], as its place among them; -1 for none.

    segment [B, S], index and left [B, K] from `select_tokens`; with `earlier`, survivors after a token are not looked at. Survivors
    belong to themselves.
    """
    here, slots = (torch.arange(n, device=index.device) for n in (segment.shape[1], index.shape[1]))
    kept, found = pick(place, index), [segment[:, :0]]
    for start, stop in tiles(place, segment.shape[1], index.numel()):
        same = same_image(segment[:, start:stop], left) & (place[:, start:stop, None] == kept.unsqueeze(1))
        if earlier:
            same = same & (index.unsqueeze(1) <= here[start:stop, None])
        found.append(torch.where(same, slots, -1).amax(2))
    went = torch.cat(found, 1)
    filler = (left == PADDING) & (segment.gather(1, index) != PADDING)
    return went.scatter(1, index, torch.where(filler, went.gather(1, index), slots))


def in_frame(frame: Tensor, grid: Tensor, segment: Tensor) -> tuple[Tensor, Tensor]:
    """Where [B, S] a token's place is in another `frame` [B, S] of its video, and whether it is; grid [B, S, 6], segment [B, S]."""
    visual = segment >= 0
    order = torch.sort(visual.int(), dim=1, descending=True, stable=True).indices
    nth = visual.long().cumsum(1) - 1 + (frame - grid[..., 0]) * grid[..., 4] * grid[..., 5]
    at = order.gather(1, nth.clamp(0, segment.shape[1] - 1))
    other = pick(grid, at)
    there = (other[..., 1:] == grid[..., 1:]).all(-1) & (other[..., 0] == frame) & (segment.gather(1, at) == segment)
    return at, there & visual & (nth >= 0)


def change(hidden: Tensor, frame: Tensor, grid: Tensor, segment: Tensor) -> Tensor:
    """1 - cosine [B, S] of a token and the one at its place in `frame` [B, S], 2 where there is none; hidden [B, S, D], grid [B, S, 6]."""
    at, there = in_frame(frame, grid, segment)
    x = unit(hidden)
    return torch.where(there, 1 - (x * pick(x, at)).sum(-1), 2.0)
