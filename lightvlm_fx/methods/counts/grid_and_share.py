"""Count: every so many rows and columns of the picture, and a share of its other tokens (FEATHER, arXiv 2412.13180, first cut)."""

from __future__ import annotations

import math

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.base import Picture, TokenCount
from lightvlm_fx.methods.options import Share


class GridAndShare(TokenCount):
    """The tokens in every `stride`-th row and column, and int(share * tokens of the picture) of the others."""

    name = "grid-and-share"
    source = "arXiv 2412.13180"
    stride: Positive = 3
    share: Share = 0.3

    def tokens(self, picture: Picture, arriving: int) -> int:
        frames, rows, columns = picture.sides
        grid = frames * math.ceil(rows / self.stride) * math.ceil(columns / self.stride)
        return min(arriving, grid + int(self.share * picture.tokens))
