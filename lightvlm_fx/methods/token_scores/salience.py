"""Score: what the vision tower itself attends to (SparseVILA, arXiv 2510.17777, stage 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor


class Salience(TokenScore):
    """Read from the tower before the decoder runs: the first cut alone can have it, as the tower attends to every token there was."""

    name = "salience"
    source = "arXiv 2510.17777"
    reads = ("tower",)

    def score(self, view: View) -> Tensor:
        tower: Tensor = view.tower
        return tower.clone()
