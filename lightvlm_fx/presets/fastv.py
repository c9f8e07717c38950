"""FastV (arXiv 2403.06764), as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.token_scores.last_query import LastQuery
from lightvlm_fx.schedule import Cut, Keep, Layer, Schedule

SURE = (
    "Read from the authors' code: what the last prompt token attends to in the layer before, mean over heads; layer 2 or 3; survivors "
    "keep their positions. Ours: the choice is made once, at the prompt, as in their variant with a cache, and for each picture by "
    "itself."
)


def fastv(keep: Keep = 0.5, layer: Layer = 2, rope: bool = True) -> Schedule:
    """FastV (arXiv 2403.06764): after layer 2, keep the tokens the last prompt token attends to most."""
    return Schedule(name="fastv", cuts=(Cut(layer=layer, keep=keep, score=LastQuery(rope=rope)),))
