"""Combine: every dropped token is averaged into the survivor of its image that it resembles most (ToMe's rule, arXiv 2210.09461)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import Combine, View

if TYPE_CHECKING:
    from torch import Tensor


class Merge(Combine):
    """Means weighed by size."""

    name = "merge"
    source = "arXiv 2210.09461, on a fixed set of survivors"
    reads = ("hidden", "size", "index", "left")

    def combine(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        from torch import ops

        went = ops.lightvlm.nearest_survivor(view.hidden, view.segment, view.index, view.left)
        merged, size = ops.lightvlm.merge_tokens(view.hidden, view.size, view.index, went)
        return merged, size, went
