"""SparseVLM (arXiv 2410.04417), the static budgets of its code's version 1.5, as a schedule."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.methods.token_scores.raters import Raters
from lightvlm_fx.presets.shared import cuts
from lightvlm_fx.schedule import Keep, Layer, Policy, Schedule

SURE = (
    "Read from the authors' code, version 1.5: raters found once, layers 2, 6 and 15 of 32, 300, 200 and 110 of 576 tokens, survivors "
    "renumbered. Ours: models with M-RoPE keep positions, as version 2.0 does; pictures of a row share raters, and all words rate where "
    "none is above average; the recycling of pruned tokens is left out."
)


def sparsevlm(
    keep: Sequence[Keep] = (300 / 576, 200 / 576, 110 / 576),
    layers: Sequence[Layer] = (3 / 32, 7 / 32, 16 / 32),
    positions: Policy = "input",
) -> Schedule:
    """SparseVLM (arXiv 2410.04417), the static budgets of its code's version 1.5: what relevant words of the question attend to.

    After layers 2, 6 and 15 of 32, 300, 200 and 110 of 576 tokens: 192 on average. What is pruned is not recycled into clusters, which
    stand after the picture there. Survivors are renumbered, as in that version; with M-RoPE they keep their positions, as in version 2.0.
    """
    return cuts("sparsevlm", layers, keep, score=Raters(), positions=positions)
