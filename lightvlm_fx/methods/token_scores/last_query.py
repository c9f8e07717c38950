"""Score: attention that the last prompt token pays (FastV, arXiv 2403.06764; FEATHER without RoPE)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import AttentionScore, View

if TYPE_CHECKING:
    from torch import Tensor


class LastQuery(AttentionScore):
    """Softmax of the last row of q k^T, mean over heads; over visual keys only with `image_softmax`. One row is computed, never S x S."""

    name = "last-query"
    source = "arXiv 2403.06764"
    by_text = True
    image_softmax: bool = False

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import PADDING, per_group

        last = per_group(view.q[:, :, -1:].float(), view.k).squeeze(3)
        logits = last @ view.k.float().transpose(2, 3) * view.scale  # [B, G, H/G, S]
        counted = view.segment >= 0 if self.image_softmax else view.segment != PADDING
        logits = logits.masked_fill(~counted[:, None, None], torch.finfo(torch.float32).min)
        return logits.softmax(-1).mean((1, 2))
