"""Score: what changed from one frame of a video to the next (FrameFusion, arXiv 2501.01986, its merges)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor


class FrameChange(TokenScore):
    """1 - cosine of a token and the one at its place in the frame before; 2, the most, in first frames. With combine `earlier-frame`."""

    name = "frame-change"
    source = "arXiv 2501.01986"
    reads = ("hidden", "grid")

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.same_place import change

        return change(view.hidden, view.grid[..., 0] - 1, view.grid, view.segment)
