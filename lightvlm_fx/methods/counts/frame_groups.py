"""Count: every fourth frame of a video, and a share of each other one (DyCoke, arXiv 2411.15024)."""

from __future__ import annotations

from lightvlm_fx.methods.base import Picture, TokenCount
from lightvlm_fx.methods.options import Share


class FrameGroups(TokenCount):
    """All of every fourth frame, the first too, and int(share * tokens of a frame) of the others; still pictures stay whole."""

    name = "frame-groups"
    source = "arXiv 2411.15024"
    share: Share = 0.3

    def tokens(self, picture: Picture, arriving: int) -> int:
        frames, rows, columns = picture.sides
        whole = -(-frames // 4)
        return min(arriving, whole * rows * columns + (frames - whole) * int(self.share * rows * columns))
