"""V2Drop (arXiv 2509.01552), as a schedule."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.methods.token_scores.variation import Variation
from lightvlm_fx.presets.shared import cuts
from lightvlm_fx.schedule import Keep, Layer, Schedule

SURE = (
    "Read from the authors' code: the norm of what the layer before changed, 0.5, then half of that, then one token, positions kept. "
    "Paper and code disagree on the middle layer, 16 or 17 of 32: ours is the paper's."
)


def v2drop(keep: Sequence[Keep] = (0.5, 0.25, 1), layers: Sequence[Layer] = (3 / 32, 16 / 32, 22 / 32)) -> Schedule:
    """V2Drop (arXiv 2509.01552): three times, the tokens that the layer before changed most; one a picture at last.

    The paper's layers are 3, 16 and 22 of 32; its code for LLaVA-1.5 has 17 in the place of 16.
    """
    return cuts("v2drop", layers, keep, score=Variation())
