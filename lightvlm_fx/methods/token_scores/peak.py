"""Score: peaks; tokens that the last query looks at and that no token it looks at more resembles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import ATTENTION, View
from lightvlm_fx.methods.options import Power
from lightvlm_fx.methods.token_scores.last_query import LastQuery

if TYPE_CHECKING:
    from torch import Tensor


class Peak(LastQuery):
    """Attention^power x cosine distance to the nearest token of the image that receives more; 0 for text.

    Of equal ones the earlier token counts as higher. The parallel, static form of greedy importance x diversity.
    """

    name = "peak"
    source = "ours, after density-peak clustering"
    reads = ("hidden", *ATTENTION)
    power: Power = 0.25

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.similarity import directions, peaks

        return peaks(super().score(view), directions(view.hidden, view.segment), view.segment, self.power, 0.0)
