"""Score: a uniform grid of the picture first, then what the last prompt token attends to (FEATHER, arXiv 2412.13180, first cut)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.base import ATTENTION, View
from lightvlm_fx.methods.token_scores.last_query import LastQuery

if TYPE_CHECKING:
    from torch import Tensor


class GridLastQuery(LastQuery):
    """2 for tokens in every `stride`-th row and column, and the attention of `last-query`, below 1, for the others."""

    name = "grid-last-query"
    source = "arXiv 2412.13180"
    reads = (*ATTENTION, "grid")
    rope: bool = False
    image_softmax: bool = True
    stride: Positive = 3

    def score(self, view: View) -> Tensor:
        import torch

        on_grid = ((view.grid[..., 1:3] % self.stride) == 0).all(-1)
        return torch.where(on_grid & (view.segment >= 0), 2.0, super().score(view))
