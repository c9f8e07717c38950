"""Score: what changed within every four frames of a video (DyCoke, arXiv 2411.15024, its temporal half)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor


class GroupChange(TokenScore):
    """Of every fourth frame all, of the others as many tokens each as the budget allows, least like their place in a frame before.

    Read from code: the second frame of four is compared with the first, the third with the first, the fourth with the third, by the
    cosine at the same place; use count `frame-groups`. Ours: a last group is treated as the others are, of which the source leaves
    some frames whole and drops an odd last one. Left out: the source's other half, which chooses cache entries anew while decoding.
    """

    name = "group-change"
    source = "arXiv 2411.15024"
    reads = ("hidden", "budget", "grid")

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.same_place import change
        from lightvlm_fx.ops.segments import rank_in_segment

        frame, frames, size = view.grid[..., 0], view.grid[..., 3], view.grid[..., 4] * view.grid[..., 5]
        whole, first = (frames + 3) // 4, frame % 4 == 0
        apart = change(view.hidden, frame - torch.where(frame % 4 == 2, 2, 1), view.grid, view.segment)
        each = (view.budget - whole * size).clamp_min(0) // (frames - whole).clamp_min(1)
        rank = rank_in_segment(apart, torch.where(view.segment >= 0, view.segment * 2**24 + frame, view.segment))
        score: Tensor = torch.where(first, 2.0, (rank < each).float() + apart / 4)
        return score
