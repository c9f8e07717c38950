"""KV score: the newer the higher (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import EntryScore, View

if TYPE_CHECKING:
    from torch import Tensor


class Age(EntryScore):
    """Place of each entry in its row, from 1."""

    name = "age"
    source = "arXiv 2309.17453"
    one_choice = steps = True

    def prompt(self, view: View) -> Tensor:
        from lightvlm_fx.ops.segments import PADDING

        place: Tensor = (view.segment != PADDING).cumsum(1).unsqueeze(1).float()
        return place
