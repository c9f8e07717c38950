"""Count: a share of a video, at least as many tokens as a frame has (FrameFusion, arXiv 2501.01986)."""

from __future__ import annotations

from lightvlm_fx.methods.base import Picture, TokenCount
from lightvlm_fx.methods.options import Share


class ShareOfVideo(TokenCount):
    """Tokens less int((1 - share) * tokens), or those of a frame if that is more: still pictures stay whole."""

    name = "share-of-video"
    source = "arXiv 2501.01986"
    share: Share = 0.3

    def tokens(self, picture: Picture, arriving: int) -> int:
        _, rows, columns = picture.sides
        return min(arriving, max(rows * columns, picture.tokens - int((1 - self.share) * picture.tokens)))
