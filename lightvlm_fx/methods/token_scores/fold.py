"""Score: which tokens a repeated bipartite matching folds into which (FOLDER, arXiv 2501.02430, the simple version)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor


class Fold(TokenScore):
    """1 for the tokens that are left of an image; of one that was folded, -1 minus the place of the token that it became part of.

    The combine `fold` reads that. Of an image's tokens in order, those at even places match the nearest ones at odd places by cosine, and
    the best pairs become one, a mean by count, at the odd place: until `budget` tokens are left, half of them at most in each of
    `folds` rounds. More rounds than it takes make exported graphs larger and change nothing; with fewer, tokens are lost.
    Read from code, where a penalty for salient tokens never acts in this version, and folding none fails.
    """

    name = "fold"
    source = "arXiv 2501.02430"
    reads = ("hidden", "budget")
    folds: Positive = 16

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.folding import folded

        root = folded(view.hidden, view.segment, view.budget, self.folds)
        here = torch.arange(root.shape[1], device=root.device)
        return torch.where(view.segment < 0, 0.0, torch.where(root == here, 1.0, -1.0 - root.float()))
