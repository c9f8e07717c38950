"""Combine: what the score `fold` folded becomes one token (FOLDER, arXiv 2501.02430, the simple version)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import Combine, View

if TYPE_CHECKING:
    from torch import Tensor


class Fold(Combine):
    """Means weighed by size; with `louder` times 1 + log(what the token stands for), as the source's function always does (read from code).

    Beside another score than `fold` nothing says which tokens belong together, and what is dropped is gone.
    """

    name = "fold"
    source = "arXiv 2501.02430"
    reads = ("hidden", "size", "score", "index", "left")
    louder: bool = True

    def combine(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        from lightvlm_fx.ops.segments import PADDING

        hidden, segment, index = view.hidden, view.segment, view.index
        here, slots = (torch.arange(x.shape[1], device=x.device).expand_as(x) for x in (segment, index))
        filler = (view.left == PADDING) & (segment.gather(1, index) != PADDING)
        slot = torch.full_like(segment, -1).scatter(1, index, torch.where(filler, -1, slots))
        root = torch.where(view.score < 0, (-1 - view.score).long().clamp(0, here.shape[1] - 1), here)
        went = torch.where(segment == segment.gather(1, root), slot.gather(1, root), -1)
        went = torch.where(slot >= 0, slot, went)
        merged, grown = torch.ops.lightvlm.merge_tokens(hidden, view.size, index, went)
        if self.louder:
            louder = 1 + (grown / view.size.gather(1, index)).clamp_min(1).log()
            merged = (merged.float() * louder.unsqueeze(-1)).to(hidden.dtype)
        return merged, grown, went
