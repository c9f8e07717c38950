"""KV score: attention from the text after the picture (VL-Cache, arXiv 2410.23317)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import ATTENTION, EntryScore, View

if TYPE_CHECKING:
    from torch import Tensor


class Text(EntryScore):
    """Column sums over the rows of the text after the last visual token."""

    name = "text"
    source = "arXiv 2410.23317"
    reads = (*ATTENTION, "mask")

    def prompt(self, view: View) -> Tensor:
        from lightvlm_fx.ops.column_sums import column_sums
        from lightvlm_fx.ops.segments import text_after_pictures

        rows = text_after_pictures(view.segment).float()
        return column_sums(view.q, view.k, view.segment, view.mask, view.scale, rows)[0]
