"""Score: how little a token resembles the mean of its picture (METEOR, arXiv 2507.20842, shallow layers of its encoders)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor


class UnlikeMean(TokenScore):
    """1 minus the cosine of a token's hidden state and the mean of those of its picture's tokens: what is most like it is redundant."""

    name = "unlike-mean"
    source = "arXiv 2507.20842"
    reads = ("hidden",)

    def score(self, view: View) -> Tensor:
        from lightvlm_fx.ops.merge_tokens import sums
        from lightvlm_fx.ops.segments import unit
        from lightvlm_fx.ops.tiles import pick

        segment, visual = view.segment, (view.segment >= 0).float()
        mean = sums(view.hidden, visual, segment, segment.shape[1])[0]  # of a picture's tokens; of its direction the length says nothing
        own: Tensor = pick(unit(mean), segment.clamp_min(0))
        return (1 - (unit(view.hidden) * own).sum(-1)) * visual
