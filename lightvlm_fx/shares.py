"""Shares of a picture: of its tokens, and of its sides."""

from __future__ import annotations

import math

STEPS = 120  # smaller grids have so many parts of the picture's sides; whole for 1/2, 2/3, 3/4, 2/5, 5/6


def share_of(keep: float, tokens: int) -> int:
    """`keep` of a picture's tokens, halves up, one at least; 0 of none."""
    return min(tokens, max(1, math.floor(tokens * keep + 0.5))) if tokens else 0
