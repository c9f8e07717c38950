"""Score: how much the layer before the cut changed a token (V2Drop, arXiv 2509.01552)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lightvlm_fx.frozen import Number
from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor

Order = Annotated[Number, Field(ge=1, le=16)]


class Variation(TokenScore):
    """Norm of the difference between a token's hidden state before the cut and one layer earlier: what changes little is done.

    `order` is that of the norm; the source takes 2. It reads no attention and asks no question.
    """

    name = "variation"
    source = "arXiv 2509.01552"
    reads = ("hidden", "previous")
    order: Order = 2.0

    def score(self, view: View) -> Tensor:
        change: Tensor = view.hidden.float() - view.previous.float()
        return change.norm(p=self.order, dim=-1)
