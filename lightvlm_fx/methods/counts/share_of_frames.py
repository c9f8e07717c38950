"""Count: a share of every frame of a video (FastVID, arXiv 2503.11187)."""

from __future__ import annotations

from lightvlm_fx.methods.base import Picture, TokenCount
from lightvlm_fx.methods.options import Share


class ShareOfFrames(TokenCount):
    """int(share * tokens of a frame) for each frame, one at least; still pictures stay whole."""

    name = "share-of-frames"
    source = "arXiv 2503.11187"
    share: Share = 0.1

    def tokens(self, picture: Picture, arriving: int) -> int:
        frames, rows, columns = picture.sides
        return arriving if frames == 1 else min(arriving, frames * max(1, int(self.share * rows * columns)))
