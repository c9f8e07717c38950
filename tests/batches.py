"""Hypothesis strategies for what the ops read: left-padded batches of text and pictures, their tensors."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from lightvlm_fx.methods import operators
from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.ops.similarity import directions
from lightvlm_fx.ops.tiles import pick

OPS = torch.ops.lightvlm
operators.every()  # registers those of methods
HEADS, GROUPS, WIDTH, HIDDEN = 4, 2, 6, 5


@dataclass(frozen=True)
class Batch:
    """Rows of text and pictures, and a budget for every picture."""

    segment: torch.Tensor  # [B, S]
    budget: torch.Tensor  # [B, S]: tokens to keep of the token's image
    table: torch.Tensor  # [B, 4]: the same by image
    length: int  # K, tokens that stay in every row
    seed: int

    @property
    def rows(self):
        return self.segment.shape[0]

    def randn(self, *shape, salt=0):
        """Random numbers that belong to this batch."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed + salt))

    def hidden(self, width=HIDDEN):
        return self.randn(*self.segment.shape, width, salt=1)

    def alike(self, index=None):
        """Cosines of all tokens to all [B, S, S], or to those at `index` [B, K]."""
        x = directions(self.hidden(), self.segment)
        return x @ pick(x, index).transpose(1, 2)

    def score(self):
        """Few different values, so that ties are common."""
        draw = torch.Generator().manual_seed(self.seed)
        return torch.randint(0, 4, self.segment.shape, generator=draw).float() / 4

    def qk(self):
        b, s = self.segment.shape
        return self.randn(b, HEADS, s, WIDTH, salt=2), self.randn(b, GROUPS, s, WIDTH, salt=3)

    def select(self, score=None):
        """What `select_tokens` returns: index, left, rank."""
        return OPS.select_tokens(
            self.score() if score is None else score, self.segment, self.budget, self.length
        )

    def images(self):
        """(row, number) of every picture."""
        return [(b, int(i)) for b in range(self.rows) for i in self.segment[b].unique() if i >= 0]


@st.composite
def batches(draw, keep_all=False, rows=(1, 3)):
    """A batch of 1 to 3 rows with 0 to 3 pictures of 1 to 6 tokens each, text around, padding on the left."""
    built, budgets = [], []
    for _ in range(draw(st.integers(*rows))):
        row, kept = [TEXT] * draw(st.integers(0, 2)), []
        for number in range(draw(st.integers(0, 3))):
            n = draw(st.integers(1, 6))
            row += [number] * n + [TEXT] * draw(st.integers(0, 1))
            kept.append(n if keep_all else draw(st.integers(1, n)))
        built.append(row + [TEXT] * draw(st.integers(1, 3)))
        budgets.append(kept)
    width = max(map(len, built))
    segment = torch.tensor([[PADDING] * (width - len(row)) + row for row in built])
    table = torch.tensor([kept + [0] * (4 - len(kept)) for kept in budgets])
    survivors = [row.count(TEXT) + sum(kept) for row, kept in zip(built, budgets, strict=True)]
    budget = table.gather(1, segment.clamp_min(0))
    length = width if keep_all else max(survivors)
    return Batch(segment, budget, table, length, draw(st.integers(0, 2**31)))
