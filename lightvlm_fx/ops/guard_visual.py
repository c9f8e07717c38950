"""Running scores that let text go before the picture."""

from __future__ import annotations

import torch
from torch import Tensor

GUARD = 1e5  # above what attention adds up to in 100,000 steps; finite, so that sinks and recents stay above it


@torch.library.custom_op("lightvlm::guard_visual", mutates_args=())
def guard_visual(score: Tensor, segment: Tensor) -> Tensor:
    """`score` [B, G, S] float32, raised for visual entries (segment [B, S] >= 0) above whatever text can reach."""
    return score + GUARD * (segment >= 0).unsqueeze(1).float()


@guard_visual.register_fake
def _(score, segment):
    return torch.empty_like(score)
