"""PyramidDrop (arXiv 2410.17247), as a schedule."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.methods.token_scores.last_query import LastQuery
from lightvlm_fx.presets.shared import QUARTERS, cuts
from lightvlm_fx.schedule import Keep, Layer, Policy, Schedule

SURE = (
    "Read from the authors' code: layers 8, 16 and 24 of 32, shares 0.5, 0.25 and 0.125, what the last prompt token attends to, "
    "survivors renumbered. Ours: the attention is that of the layer before the cut; theirs is ahead=True."
)


def pyramiddrop(
    keep: Sequence[Keep] = (0.5, 0.25, 0.125),
    layers: Sequence[Layer] = QUARTERS,
    positions: Policy = "compact",
    ahead: bool = False,
) -> Schedule:
    """PyramidDrop (arXiv 2410.17247): geometric drops at equal stages, survivors renumbered.

    The original ranks with the projections of the layer after the cut: `ahead=True`, by which that layer's norm and two projections run
    for all that arrives. The default reads queries and keys of the layer before, which are there anyway. Models with M-RoPE cannot be
    renumbered and need positions="keep".
    """
    return cuts("pyramiddrop", layers, keep, score=LastQuery(ahead=ahead), positions=positions)
