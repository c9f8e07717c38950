"""DivPrune (arXiv 2503.02175), as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.token_scores.far_apart import FarApart
from lightvlm_fx.schedule import Cut, Keep, Layer, Policy, Schedule

SURE = (
    "By our notes, checked again in November 2026: cosines of what the projector gives, first the token whose nearest neighbour is "
    "farthest, then max-min, about 0.098 of the tokens, renumbered. Ours: 0.1 of them, and each picture by itself."
)


def divprune(keep: Keep = 0.1, layer: Layer = 0, positions: Policy = "input") -> Schedule:
    """DivPrune (arXiv 2503.02175): before the decoder, the tokens that are least alike, picked one by one.

    The source picks over what the projector gives, and answers as if the prompt had been that short.
    """
    return Schedule(name="divprune", cuts=(Cut(layer=layer, keep=keep, score=FarApart(), positions=positions),))
