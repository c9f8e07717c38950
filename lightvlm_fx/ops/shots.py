"""Shots of a video: runs of frames that look alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightvlm_fx.ops.merge_tokens import sums
from lightvlm_fx.ops.segments import PADDING, rank_in_segment, unit
from lightvlm_fx.ops.tiles import pick


@dataclass
class Shots:
    """Of each visual token [B, S] int64; of text, any number."""

    frame: Tensor  # a number of its own for every frame of the row, below S
    shot: Tensor  # the number of its shot in the row, from 1
    place: Tensor  # of its frame in the shot, from 0
    frames: Tensor  # of the shot


def shots(hidden: Tensor, grid: Tensor, segment: Tensor, count: int, alike: float) -> Shots:
    """Cut videos where frames differ most: at the `count` - 1 places of least cosine between a frame's mean token and that of the frame
    before, and wherever it is below `alike`.

    hidden [B, S, D], grid [B, S, 6], segment [B, S]; every picture is whole.
    """
    visual, length = segment >= 0, segment.shape[1]
    size = grid[..., 4] * grid[..., 5]
    nth = visual.long().cumsum(1) - 1
    frame = (nth - grid[..., 1] * grid[..., 5] - grid[..., 2]).clamp(0, length - 1)
    means = unit(sums(hidden, visual.float(), torch.where(visual, frame, -1), length)[0])
    step = (pick(means, frame) * pick(means, (frame - size).clamp_min(0))).sum(-1)
    first = visual & (frame == nth)  # of its frame; it speaks for the others
    later = first & (grid[..., 0] > 0)
    new = first & ((grid[..., 0] == 0) | (step < alike) | (rank_in_segment(-step, torch.where(later, segment, PADDING)) < count - 1))
    shot = new.long().cumsum(1)
    begin = torch.zeros(segment.shape[0], length + 1, dtype=torch.int64, device=segment.device)
    begin = begin.scatter(1, torch.where(new, shot, 0), grid[..., 0]).gather(1, shot)
    frames = torch.zeros_like(segment, dtype=torch.float32)
    frames = torch.cat([frames, frames[:, :1]], 1).scatter_add(1, shot, first.float()).gather(1, shot).long()
    return Shots(frame, shot, grid[..., 0] - begin, frames.clamp_min(1))
