"""Combine: the picture's low spatial frequencies at the places of a smaller grid (Fourier-VLM, arXiv 2508.06038)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import Combine, View

if TYPE_CHECKING:
    from torch import Tensor


class LowPass(Combine):
    """The corner of a picture's 2-D cosine transform, transformed back at the size of a smaller grid; with score `lattice`.

    Read from code: orthonormal transforms of each frame, cropped to the smaller grid. Ours: the result is scaled so that a picture of
    equal tokens stays as it is, which the source leaves to training; and it is taken over what the projector gives, which for
    LLaVA-like towers the source does before it. The grid is the largest that the budget holds, and a survivor stands for its cell.
    Both transforms of both directions are one product with weights [K, S], in closed form: sides are values in a graph for every size,
    which has no matrices of their shape. Pictures of which an earlier cut took tokens, or that lose none, stay as they are.
    """

    name = "low-pass"
    source = "arXiv 2508.06038"
    reads = ("hidden", "size", "budget", "index", "left", "grid")

    def combine(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        from lightvlm_fx.ops.lattice import cells, number, small_grid
        from lightvlm_fx.ops.same_place import same_place
        from lightvlm_fx.ops.segments import TEXT, image_tokens, same_image
        from lightvlm_fx.ops.tiles import pick, tiles

        hidden, segment, index, left, grid = view.hidden, view.segment, view.index, view.left, view.grid
        tokens, small = image_tokens(segment), small_grid(grid, view.budget)
        whole = (tokens == grid[..., 3:].prod(-1)) & (view.budget < tokens) & (segment >= 0)
        cell, made, exact = cells(grid, small), [], hidden.float()
        own_cell, own_small, own = pick(cell, index), pick(small, index), pick(grid, index)
        for start, stop in tiles(index, index.shape[1], segment.numel()):
            rows = slice(start, stop)
            weight = same_image(left[:, rows], segment) & (own[:, rows, None, 0] == grid[:, None, :, 0])
            for axis in range(2):
                at, sizes, sides = (x[:, rows, None, axis] for x in (own_cell, own_small, own[..., 4:].clamp_min(1)))
                weight = weight * low_pass(at, sizes, sides, grid[:, None, :, 1 + axis])
            made.append(weight @ exact)
        moved = (left >= 0) & pick(whole.long(), index).bool()
        low = torch.where(moved.unsqueeze(-1), torch.cat(made, 1).to(hidden.dtype), pick(hidden, index))
        size = torch.where(moved, pick(tokens / view.budget.clamp_min(1), index), pick(view.size, index))
        return low, size, same_place(number(grid, cell), torch.where(whole | (segment < 0), segment, TEXT), index, left)


def low_pass(at: Tensor, small: Tensor, side: Tensor, place: Tensor) -> Tensor:
    """How much of a line of `side` values the one at `place` gives to the one `at` its place among `small`: whole numbers, broadcast.

    The sum of the first `small` cosines of both places, as Dirichlet's closed form. Angles are reduced as whole numbers.
    """
    import torch

    turn = 4 * small * side  # half a turn
    total: float | Tensor = 0.0
    for apart in ((2 * at + 1) * side - (2 * place + 1) * small, (2 * at + 1) * side + (2 * place + 1) * small):
        near = torch.minimum(apart.abs(), (turn - apart).abs())
        above = (((2 * small - 1) * apart.abs()) % (2 * turn)).float() * (math.pi / turn.float())
        below = near.float() * (math.pi / turn.float())
        total = total + torch.where(near == 0, (2 * small - 1).float(), above.sin() / torch.where(near == 0, 1.0, below.sin()))
    return total / (2 * side.float())
