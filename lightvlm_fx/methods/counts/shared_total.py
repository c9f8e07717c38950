"""Count: the more frames or pictures, the fewer tokens each (Dynamic-VLM, arXiv 2412.09530)."""

from __future__ import annotations

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.base import Picture, TokenCount
from lightvlm_fx.methods.counts.lattice import shrunk
from lightvlm_fx.shares import STEPS


class SharedTotal(TokenCount):
    """Of each frame the largest smaller grid that total // frames tokens hold, and `most` of them.

    Read from code: the frames of a video share `total`, each has `most` at most, and a square of the whole root of what that leaves;
    the least number that the paper names is not looked at when answering. Ours: pictures side by side share it as frames do, and a
    smaller grid has the picture's aspect.
    """

    name = "shared-total"
    source = "arXiv 2412.09530"
    by_row = True
    total: Positive = 2048
    most: Positive = 144

    def tokens(self, picture: Picture, arriving: int) -> int:
        frames = picture.sides[0]
        each = max(1, min(self.most, self.total // (frames if frames > 1 else picture.beside)))
        return min(arriving, max(n for step in range(STEPS + 1) if (n := shrunk(picture, step)) <= frames * each))
