"""Count: a share of what the cut before left (FEATHER, arXiv 2412.13180, second cut)."""

from __future__ import annotations

from lightvlm_fx.methods.base import Picture, TokenCount
from lightvlm_fx.methods.options import Share


class ShareOfArriving(TokenCount):
    """int(share * tokens that arrive), one at least."""

    name = "share-of-arriving"
    source = "arXiv 2412.13180"
    by_grid = False
    share: Share = 0.09

    def tokens(self, picture: Picture, arriving: int) -> int:
        return max(1, int(arriving * self.share)) if arriving else 0
