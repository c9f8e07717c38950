"""A share of a picture, as a number of its tokens."""

from __future__ import annotations

import math


def share_of(keep: float, tokens: int) -> int:
    """`keep` of a picture's tokens, halves up, one at least; 0 of none."""
    return min(tokens, max(1, math.floor(tokens * keep + 0.5))) if tokens else 0
