"""Score: attention of the words of the question that relate to the picture (SparseVLM, arXiv 2410.04417)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import ATTENTION, AttentionScore, View

if TYPE_CHECKING:
    from torch import Tensor

MORE = 1e-5  # of an average: words that are equally relevant are all average, whatever their sums round to


class Raters(AttentionScore):
    """Mean attention, over heads, of the raters: text after the pictures whose relevance is above its average.

    Relevance of a word: softmax over the words of the product of a visual token's input embedding with theirs, mean over the visual
    tokens. Read from the source's code (branch v1.5, 2026-11-26): raters are found once, before the decoder, and rate at every cut.

    Ours: pictures of a row share their raters, found over all its visual tokens, in the text after the last; where no word is above
    average, as for a single one, all of it rates (there the mean of nothing).
    """

    name = "raters"
    source = "arXiv 2410.04417"
    reads = (*ATTENTION, "mask", "noted")

    def note(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import text_after_pictures
        from lightvlm_fx.ops.tiles import tiles

        b, s = view.segment.shape
        words, visual = text_after_pictures(view.segment), (view.segment >= 0).float()
        x, total = view.embeds.float(), torch.zeros_like(visual)
        for start, stop in tiles(x, s, b * s):
            likeness = (x[:, start:stop] @ x.transpose(1, 2)).masked_fill(~words[:, None], torch.finfo(torch.float32).min)
            total = total + (visual[:, None, start:stop] @ likeness.softmax(-1)).squeeze(1)
        average = visual.sum(1, keepdim=True) / words.sum(1, keepdim=True).clamp_min(1)
        raters = words & (total > average * (1 + MORE))
        return (raters | (words & ~raters.any(1, keepdim=True))).float()

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.column_sums import column_sums

        weight = view.noted / view.noted.sum(1, keepdim=True).clamp_min(1)
        return column_sums(view.q, view.k, view.segment, view.mask, view.scale, weight)[0].mean(1)
