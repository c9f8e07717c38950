"""Score: pseudo-random numbers, the baseline that every method must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lightvlm_fx.methods.base import TokenScore, View

if TYPE_CHECKING:
    from torch import Tensor

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Random(TokenScore):
    """In [0, 1): a hash of each token's place in its image, the image's number, the layer and `seed`.

    The same on every machine and back end, and independent of the row's place in the batch; so every picture of one size loses the
    same tokens, and a fair baseline averages over seeds.
    """

    name = "random"
    source = "baseline"
    reads = ("layer",)
    seed: Seed = 0

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import rank_in_segment

        place = rank_in_segment(torch.zeros_like(view.segment, dtype=torch.float32), view.segment)
        seed = (64 * self.seed + view.layer) % 2**63
        x: Tensor = place * 2654435761 + view.segment.clamp_min(0) * 40503 + (seed * 2246822519 & 0xFFFFFFFF)
        for shift, factor in ((16, 0x45D9F3B), (15, 0x2C1B3C6D), (12, 0x297A2D39)):
            x = x & 0xFFFFFFFF
            x = (x ^ (x >> shift)) * factor
        x = (x & 0xFFFFFFFF) ^ ((x & 0xFFFFFFFF) >> 15)
        return (x & 0xFFFFFF).float() / 2**24
