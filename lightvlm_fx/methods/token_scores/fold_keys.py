"""Score: which patches a repeated bipartite matching of keys folds into which (FOLDER, arXiv 2501.02430; ToMe, arXiv 2210.09461)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.frozen import Number, Positive
from lightvlm_fx.methods.base import ATTENTION, TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor


class FoldKeys(TokenScore):
    """As the score `fold`, but patches are as alike as the keys of the tower's attention, mean over heads; for cuts inside the tower.

    `penalty` times 100 times the attention that a patch receives (from the summary token where there is one) is taken off its
    likeness, so that salient patches move last: 5 in the source's LLaVA example, 1 by default there; 0 is ToMe's matching, with `folds`
    1. With a summary token patches at odd places move, else at even ones, as the sources count that token too. Order is kept,
    as FOLDER does (ToMe mixes it). Keys of towers with rotary positions are rotated ones: ours.
    """

    name = "fold-keys"
    source = "arXiv 2501.02430"
    reads = (*ATTENTION, "budget", "tower")
    folds: Positive = 16
    penalty: Number = 5.0

    @property
    def before_layers(self) -> bool:
        return False

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.folding import folded
        from lightvlm_fx.ops.segments import TEXT

        keys, segment = view.k.mean(1), view.segment
        off = 100 * self.penalty * view.tower if self.penalty else None
        summarised = (segment[:, :1] == TEXT).long()
        root = folded(keys, segment, view.budget, self.folds, off, summarised)
        here = torch.arange(root.shape[1], device=root.device)
        return torch.where(segment < 0, 0.0, torch.where(root == here, 1.0, -1.0 - root.float()))
