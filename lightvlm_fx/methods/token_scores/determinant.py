"""Score: tokens that are relevant to the text and unlike each other, by a determinantal point process (CDPruner, arXiv 2506.10967)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor


class Determinant(TokenScore):
    """The order of a greedy pick that makes the determinant of r_i * cosine(i, j) * r_j large: first S, then S - 1, ...; 0 for the rest.

    Kernel, greedy pick and the sign (r falls with the likeness to the text: `negated`) are as in the source's code. There r is CLIP's
    image-text cosine; these models have no text tower, so ours is the mean cosine of the token with the hidden states of the text after
    the pictures, scaled to 0 to 1 within each image. Where the tokens' space is used up, the earlier tokens come first.
    """

    name = "determinant"
    source = "arXiv 2506.10967"
    reads = ("hidden", "budget", "stay")
    negated: bool = True

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.pick_apart import pick_volume
        from lightvlm_fx.ops.segments import over_image, rank_in_segment, text_after_pictures, unit

        x, segment = unit(view.hidden), view.segment
        asked = text_after_pictures(segment).unsqueeze(1).float()
        alike = (x @ ((asked @ x) / asked.sum(2, keepdim=True).clamp_min(1)).transpose(1, 2)).squeeze(2)
        alike = -alike if self.negated else alike
        least, most = (over_image(torch.where(rank_in_segment(by, segment) == 0, alike, 0.0), segment) for by in (-alike, alike))
        relevance = (alike - least + 1e-6) / (most - least + 1e-6)
        return pick_volume(x * relevance.unsqueeze(-1), segment, view.budget, view.stay)
