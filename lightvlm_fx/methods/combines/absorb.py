"""Combine: a few survivors are centres, each averaged with the dropped tokens most like it (iLLaVA, arXiv 2412.06263, its code of 2026)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.combines.recover import Centres, Recover

if TYPE_CHECKING:
    from torch import Tensor


class Absorb(Recover):
    """(centre + group) / 2, the group a softmax(x y / sqrt(D)) mean of its `group` dropped tokens of largest product x y.

    Read from the source's code of 2026: the best P tokens stay, and as centres the next int(`centres` * P) of them, one at least; a
    token may feed several centres; products are of hidden states as they are; who feeds none is dropped. (`recover` follows the paper.)

    Ours: of a budget P is the largest that fits, and where P and its centres fall one short of it, that one is a centre; a centre of
    which nothing is left to absorb stays as it is; sizes count a token for each centre that it feeds, as in `recover`; D is the
    width of the hidden state.
    """

    name = "absorb"
    source = "arXiv 2412.06263"
    centres: Centres = 0.05

    def number(self, budget: Tensor) -> Tensor:
        # P of m = P + int(c P) leaves int(c (m + 1) / (1 + c)); the small number keeps float32 from falling below a whole one
        return ((budget + 1).float() * (self.centres / (1 + self.centres)) + 1e-4).floor().long().clamp_min(1)

    def compared(self, hidden: Tensor) -> Tensor:
        return hidden.float() / hidden.shape[2] ** 0.25  # so that products are divided by the square root

    def weights(self, alike: Tensor, score: Tensor) -> Tensor:
        return alike.softmax(-1)

    def joined(self, centre: Tensor, own: Tensor, sums: Tensor, weight: Tensor) -> Tensor:
        return (centre + sums) / 2
