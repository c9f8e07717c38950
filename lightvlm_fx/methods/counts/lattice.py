"""Count: the picture's grid, smaller by one factor in both directions (Fourier-VLM, arXiv 2508.06038; pooling)."""

from __future__ import annotations

from lightvlm_fx.methods.base import Picture, TokenCount
from lightvlm_fx.methods.options import Share
from lightvlm_fx.shares import STEPS


def shrunk(picture: Picture, step: int) -> int:
    """Cells, in all frames, of a grid with `step` of STEPS parts of the picture's sides; ops/lattice.py finds the sides from it again."""
    frames, rows, columns = picture.sides
    return frames * max(rows * step // STEPS, 1) * max(columns * step // STEPS, 1)


class Lattice(TokenCount):
    """max(int(rows * side), 1) times max(int(columns * side), 1), in each frame; `side` is rounded to 120ths."""

    name = "lattice"
    source = "arXiv 2508.06038"
    side: Share = 2 / 3

    def tokens(self, picture: Picture, arriving: int) -> int:
        return min(arriving, shrunk(picture, round(self.side * STEPS)))
