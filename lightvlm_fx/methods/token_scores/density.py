"""Score: density peaks; tokens in the middle of many like them, one of every group before a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View
from lightvlm_fx.methods.options import Power

if TYPE_CHECKING:
    from torch import Tensor


class Density(TokenScore):
    """(1 + density)^power x cosine distance to the nearest denser token of the image; 0 for text.

    The density of a token is the sum over the others of its image of exp(-cosine distance / 0.1); the one is the token itself.
    Of every group of like tokens the middle scores highest. It asks no question: the same picture keeps the same tokens.
    """

    name = "density"
    source = "ours, after Rodriguez and Laio, Science 344, 2014"
    reads = ("hidden",)
    power: Power = 0.25

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.similarity import density, directions, peaks

        x = directions(view.hidden, view.segment)
        return peaks(density(x, view.segment), x, view.segment, self.power, 1.0)
