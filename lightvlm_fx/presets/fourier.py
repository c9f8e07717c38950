"""Fourier-VLM (arXiv 2508.06038), as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.combines.low_pass import LowPass
from lightvlm_fx.methods.counts.lattice import Lattice as SmallGrid
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.token_scores.lattice import Lattice
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Policy, Schedule

SURE = (
    "Read from the authors' code: orthonormal cosine transforms of each frame, cropped to 2/3 of each side. Ours: one product with a "
    "[K, S] matrix in place of two small ones; scaled so that a picture of equal tokens stays as it is; and over what the projector "
    "gives, which they do before it for LLaVA; the quality without training is unknown."
)


def fourier(side: Share = 2 / 3, positions: Policy = "input") -> Schedule:
    """Fourier-VLM (arXiv 2508.06038): before the decoder, the picture's low frequencies on a grid of `side` times its rows and columns.

    The source trains the model with it; without training its quality is unknown. Its two small products, one along rows and one along
    columns, are one with a matrix [K, S] of survivors and tokens here, a tile of survivors at a time: how many rows and columns a picture
    has is a value, not a size, in a graph that takes pictures of every size, several in a row.
    """
    return before("fourier", SmallGrid(side=side), Lattice(), LowPass(), positions)
