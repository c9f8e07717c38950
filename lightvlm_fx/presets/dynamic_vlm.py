"""Dynamic-VLM (arXiv 2412.09530), as a schedule."""

from __future__ import annotations

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.combines.pool import Pool
from lightvlm_fx.methods.counts.shared_total import SharedTotal
from lightvlm_fx.methods.token_scores.lattice import Lattice
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Policy, Schedule

SURE = (
    "Read from the authors' code: frames share 2048 tokens and have 144 at most, pooled to a square of the whole root. Ours: after "
    "the projector, where they pool before it; a grid of the picture's aspect; pictures side by side share as frames do; cells that do "
    "not overlap, each token in one, where their adaptive average pooling has overlapping windows if the sides do not divide."
)


def dynamic_vlm(tokens: Positive = 2048, most: Positive = 144, positions: Policy = "input") -> Schedule:
    """Dynamic-VLM (arXiv 2412.09530): average pooling before the decoder; frames share `tokens`, and each has `most` at most.

    Pictures side by side share them too. Both are counts, as they are in the source, and fit any model: a frame that has fewer tokens
    than its part keeps them all. The source trains the model with it.
    """
    return before("dynamic-vlm", SharedTotal(total=tokens, most=most), Lattice(), Pool(), positions)
