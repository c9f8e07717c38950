"""Score: tokens nearest to the cells' centres of a smaller grid, for combines that make that grid (Fourier-VLM, arXiv 2508.06038)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor


class Lattice(TokenScore):
    """1 for one token in each cell of the largest smaller grid that the picture's budget holds, 0 for the others; use count `lattice`."""

    name = "lattice"
    source = "arXiv 2508.06038"
    reads = ("budget", "grid")

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.lattice import central, small_grid

        at, sides, small = view.grid[..., 1:3], view.grid[..., 4:].clamp_min(1), small_grid(view.grid, view.budget)
        chosen = central(at, sides, small).all(-1)
        there: Tensor = (chosen & (view.segment >= 0)).float()
        return there
