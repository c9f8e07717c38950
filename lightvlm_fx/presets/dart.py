"""DART (arXiv 2502.11494), as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.token_scores.unlike_pivots import UnlikePivots
from lightvlm_fx.schedule import Cut, Keep, Layer, Schedule

SURE = (
    "Read from ports of the authors' code: pivots by the L1 norm of rotated keys of the layer before, 4 of each picture and 4 of the "
    "text, layer 5 of 32, the least alike by cosine. Ours: the order of the pivots, ties, and cosines of hidden states as they are, "
    "where theirs come after the decoder's last norm."
)


def dart(keep: Keep = 0.222, layer: Layer = 5 / 32) -> Schedule:
    """DART (arXiv 2502.11494): before one early layer, pivots by the norm of their keys and the tokens that are least like them.

    The paper's layer is 5 of 32, and a reduction of 0.778 is its usual one; there int(tokens * 0.222 / 8) join each of 8 pivots, 4 of
    which are text: a count of 4 + 8 * n is exactly that.
    """
    return Schedule(name="dart", cuts=(Cut(layer=layer, keep=keep, score=UnlikePivots()),))
