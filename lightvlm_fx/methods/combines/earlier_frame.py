"""Combine: what is dropped joins its place in the last frame before that kept it (FrameFusion, arXiv 2501.01986)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import Combine, View

if TYPE_CHECKING:
    from torch import Tensor


class EarlierFrame(Combine):
    """Means weighed by size. What no earlier frame has a survivor for is dropped: tokens of first frames."""

    name = "earlier-frame"
    source = "arXiv 2501.01986"
    reads = ("hidden", "size", "index", "left", "grid")

    def combine(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        from torch import ops

        from lightvlm_fx.ops.same_place import same_place

        place = view.grid[..., 1] * view.grid[..., 5] + view.grid[..., 2]
        went = same_place(place, view.segment, view.index, view.left, earlier=True)
        merged, size = ops.lightvlm.merge_tokens(view.hidden, view.size, view.index, went)
        return merged, size, went
