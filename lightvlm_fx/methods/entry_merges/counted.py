"""Merge: dropped visual cache entries are averaged into the survivor of their image that they resemble most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import EntryMerge, View

if TYPE_CHECKING:
    from torch import Tensor


class Counted(EntryMerge):
    """A survivor then counts in attention as all that it stands for, and answers as they would, as far as they are equal.

    What resembles what is said by the values; keys, rotated as they are, are averaged alike.
    """

    name = "counted"
    source = "ours; sizes after ToMe, arXiv 2210.09461"
    reads = ("keys", "values", "size", "worth", "index", "went")
    counts = True

    def went(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import PADDING, heads_as_rows

        heads = view.index.shape[1]
        rows = view.segment.repeat_interleave(heads, 0)
        at, there = view.index.flatten(0, 1), view.entry.flatten(0, 1)
        left = torch.where(there >= 0, rows.gather(1, at), PADDING)
        found: Tensor = torch.ops.lightvlm.nearest_survivor(heads_as_rows(view.values, heads < view.values.shape[1]), rows, at, left)
        return found.view(-1, heads, rows.shape[1])

    def merge(self, view: View) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        import torch

        from lightvlm_fx.ops.segments import heads_as_rows

        keys, values, size, worth = view.keys, view.values, view.size, view.worth
        index, went = view.index, view.went.flatten(0, 1)
        (b, g), (heads, k) = values.shape[:2], index.shape[1:]
        shared = heads < g
        held = torch.cat([keys, values], -1)
        size = torch.ones_like(went, dtype=torch.float32) if size is None else size.repeat_interleave(heads, 0)
        merged, grown = torch.ops.lightvlm.merge_tokens(heads_as_rows(held, shared), size, index.flatten(0, 1), went)
        merged = merged.view(b, k, g, -1).transpose(1, 2) if shared else merged.view(b, g, k, -1)
        total = torch.zeros_like(grown)
        if worth is not None:
            total.scatter_add_(1, went.clamp_min(0), torch.where(went >= 0, worth.flatten(0, 1), 0.0))
        width = keys.shape[3]
        return merged[..., :width].contiguous(), merged[..., width:].contiguous(), grown.view(b, heads, k), total.view(b, heads, k)
