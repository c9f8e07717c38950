"""Score: what the text asks for, head by head, weighed by what each head is worth (HAWK, arXiv 2604.07812)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.frozen import Number, as_tuple
from lightvlm_fx.methods.base import ATTENTION, AttentionScore, View

if TYPE_CHECKING:
    from torch import Tensor

Weights = Annotated[tuple[Annotated[Number, Field(ge=0)], ...], BeforeValidator(as_tuple)]


class WeightedHeads(AttentionScore):
    """Of each head the mean of q k^T from text to the picture, of length one over the visual tokens; summed by `weights`, one a head.

    Read from the source's code (2026-11-26): the first layer's projections of the decoder's input, before rotary embedding and without
    softmax; so `ahead` and not `rope`, which a cut before layer 0 can have. The weights are measured offline, for each model; () is
    equal ones, ours.

    Ours: the text is all that lies after the row's pictures, the template's tokens too (there from the picture's end mark on to the
    turn's end mark), and pictures of a row share one length.
    """

    name = "weighted-heads"
    source = "arXiv 2604.07812"
    by_text = True
    reads = ATTENTION
    rope: bool = False
    ahead: bool = True
    weights: Weights = ()

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import per_group, text_after_pictures

        b, heads = view.q.shape[:2]
        if self.weights and len(self.weights) != heads:
            raise ScheduleError(f"score {self.name!r}: weights lists {len(self.weights)} heads, but a layer has {heads}; give one each")
        asks = text_after_pictures(view.segment).float()
        asks = (asks / asks.sum(1, keepdim=True).clamp_min(1))[:, None, None]  # [B, 1, 1, S]
        products = per_group(asks @ view.q.float(), view.k) @ view.k.float().transpose(2, 3).unsqueeze(2) * view.scale
        products = products.view(b, heads, -1) * (view.segment >= 0).unsqueeze(1)
        by = torch.tensor(self.weights or [1.0] * heads, dtype=torch.float32, device=view.q.device)
        return (torch.nn.functional.normalize(products, dim=-1) * by[:, None]).sum(1)
