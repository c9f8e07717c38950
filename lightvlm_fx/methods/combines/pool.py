"""Combine: each survivor becomes the mean of its cell of a smaller grid, the plain baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import Combine, View

if TYPE_CHECKING:
    from torch import Tensor


class Pool(Combine):
    """Means over the cells of the largest smaller grid that the picture's budget holds, weighed by size; with score `lattice`.

    A token is in the cell that its middle lies in. A cell without a survivor is dropped; in one with several, they stay as they are
    but for the last.
    """

    name = "pool"
    source = "baseline"
    reads = ("hidden", "size", "budget", "index", "left", "grid")

    def combine(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        from torch import ops

        from lightvlm_fx.ops.lattice import cells, number, small_grid
        from lightvlm_fx.ops.same_place import same_place

        cell = number(view.grid, cells(view.grid, small_grid(view.grid, view.budget)))
        went = same_place(cell, view.segment, view.index, view.left)
        merged, size = ops.lightvlm.merge_tokens(view.hidden, view.size, view.index, went)
        return merged, size, went
