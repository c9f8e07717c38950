"""KV score: density peaks among an image's entries, by what their values hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import EntryScore, View

if TYPE_CHECKING:
    from torch import Tensor

POWER = 0.5  # of the density, as in a cut


class Density(EntryScore):
    """Density^0.5 x cosine distance to the nearest denser entry of the image, of visual entries; of text, the newer the higher, from 0.

    The picture's contents are covered, whatever the question was. Where the heads share a choice, by the values of all heads.
    """

    name = "density"
    source = "ours, as the cut's score of this name"
    reads = ("v", "shared")

    def prompt(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import PADDING, heads_as_rows
        from lightvlm_fx.ops.similarity import density, directions, peaks

        x = heads_as_rows(view.v, view.shared)
        rows = view.segment.repeat_interleave(x.shape[0] // view.segment.shape[0], 0)
        x = directions(x, rows)
        score = peaks(density(x, rows), x, rows, POWER, 1.0)
        nth = (rows != PADDING).cumsum(1) - 1  # in its row: a column would count padding
        return torch.where(rows >= 0, score, nth.float()).view(view.segment.shape[0], -1, rows.shape[1])
