"""Smaller grids of a picture: which of them a budget holds, and the cell of it that each token is in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightvlm_fx.shares import STEPS


def small_grid(grid: Tensor, budget: Tensor) -> Tensor:
    """Rows and columns [B, S, 2] of the largest smaller grid whose cells, in all frames, are `budget` [B, S] at most.

    grid [B, S, 6]. Smaller grids are those of methods/counts/lattice.py, so that what it counts gives back the sides it counted.
    """
    frames, sides = grid[..., 3, None].clamp_min(1), grid[..., 4:]
    rows, columns = (_side(sides[..., i, None], torch.arange(STEPS + 1, device=grid.device)) for i in range(2))
    step = ((frames * rows * columns <= budget.unsqueeze(-1)).long().sum(-1, keepdim=True) - 1).clamp_min(0)
    return _side(sides, step)


def _side(side: Tensor, step: Tensor) -> Tensor:
    return (side * step // STEPS).clamp_min(1)


def central(at: Any, sides: Any, small: Any) -> Any:
    """Whether, along one side of `sides` tokens, the one at `at` is nearest to the centre of one of `small` cells; numbers or tensors."""
    half = sides // 2
    return ((at + 1) * small + half) // sides > (at * small + half) // sides


def cells(grid: Tensor, small: Tensor) -> Tensor:
    """Row and column [B, S, 2] of the cell that the middle of each token is in; grid [B, S, 6], small [B, S, 2]."""
    return (2 * grid[..., 1:3] + 1) * small // (2 * grid[..., 4:].clamp_min(1))


def number(grid: Tensor, at: Tensor) -> Tensor:
    """One number [B, S] for a token's frame and its place `at` [B, S, 2]; grid [B, S, 6]."""
    return (grid[..., 0] * grid[..., 4] + at[..., 0]) * grid[..., 5] + at[..., 1]
