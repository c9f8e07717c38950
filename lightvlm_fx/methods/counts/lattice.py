"""Count: the picture's grid, smaller by one factor in both directions (Fourier-VLM, arXiv 2508.06038; pooling)."""

from __future__ import annotations

from lightvlm_fx.methods.base import Picture, TokenCount
from lightvlm_fx.methods.counts.grid_and_share import Share


class Lattice(TokenCount):
    """max(int(rows * side), 1) times max(int(columns * side), 1), in each frame."""

    name = "lattice"
    source = "arXiv 2508.06038"
    side: Share = 2 / 3

    def tokens(self, picture: Picture, arriving: int) -> int:
        frames, rows, columns = picture.sides
        return min(arriving, frames * max(int(rows * self.side), 1) * max(int(columns * self.side), 1))
