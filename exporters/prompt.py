"""What a prompt's tokens are, where they stand and what they may see, computed inside the exported graph.

Models compute these in Python, from data; here they are tensor code over how many tokens each picture has, and
`export` refuses a model whose own values differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

from lightvlm_fx.errors import CaptureError
from lightvlm_fx.ops.segments import PADDING, TEXT, same_image


@dataclass(frozen=True)
class Prompt:
    """A bucket's prompts: `length` S tokens a row, and the ids that visual tokens have."""

    length: int
    ids: tuple[int, ...]

    def visual(self, input_ids: Tensor) -> Tensor:
        """Boolean [B, S]."""
        found = input_ids == self.ids[0]
        for i in self.ids[1:]:
            found = found | (input_ids == i)
        return found

    def segment(self, input_ids: Tensor, attention_mask: Tensor, picture_tokens: Tensor) -> Tensor:
        """PADDING, TEXT, or the picture's number within its row: [B, S] int64; picture_tokens [B, I] from the left, then zeros."""
        visual = self.visual(input_ids) & (attention_mask != 0)
        ends = picture_tokens.cumsum(1).unsqueeze(1)
        picture = (_before(visual).unsqueeze(-1) >= ends).long().sum(-1)  # how many end before each token
        return torch.where(attention_mask == 0, PADDING, torch.where(visual, picture, TEXT))

    def places(self, segment: Tensor, picture_tokens: Tensor, picture_grids: Tensor | None) -> Tensor:
        """Frame, row and column of each visual token, and how many its picture has: [B, S, 6] int64, as `Layout.places` has them.

        A picture of unknown grid is a square: picture_grids [B, I, 2], or None.
        """
        own = segment.clamp(0, picture_tokens.shape[1] - 1)
        place = _before(segment >= 0) - (picture_tokens.cumsum(1) - picture_tokens).gather(1, own)
        if picture_grids is None:
            rows = columns = (picture_tokens.float().sqrt() + 0.5).long().gather(1, own).clamp_min(1)
        else:
            rows, columns = (picture_grids[..., i].gather(1, own).clamp_min(1) for i in range(2))
        row = torch.div(place, columns, rounding_mode="trunc")
        one = torch.ones_like(row)
        there = torch.stack([torch.zeros_like(row), row, place - row * columns, one, rows, columns], -1)
        return torch.where((segment >= 0).unsqueeze(-1), there, 0)


class Positions(nn.Module):
    """RoPE positions: of each prompt token, and of new ones.

    Plain ones, one a token from `first` on, or with `planes` M-RoPE (Qwen2-VL, arXiv 2409.12191): a picture takes as many
    positions as its longer side. With four planes, the plain position stands in front.
    """

    def __init__(self, planes: int = 0, first: int = 0) -> None:
        super().__init__()
        self.planes, self.first = planes, first

    def forward(self, segment: Tensor, picture_tokens: Tensor, picture_grids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """position_ids [B, S] or [planes, B, S], and the position [B] of the first new token.

        picture_tokens [B, I]; picture_grids [B, I, 2], for M-RoPE: height and width of each picture in visual tokens.
        """
        real, visual = segment != PADDING, segment >= 0
        plain = (real.long().cumsum(1) - 1).clamp_min(0)
        if picture_grids is None or not self.planes:
            return plain + self.first, real.sum(1) + self.first
        seen = _before(visual)
        ends = picture_tokens.cumsum(1)
        over = (seen.unsqueeze(-1) >= ends.unsqueeze(1)).long()  # [B, S, I]: the picture ends before the token
        done = (over * picture_grids.amax(2).unsqueeze(1)).sum(-1)
        text = (real & ~visual).long()
        base = text.cumsum(1) - text + done
        own = segment.clamp(0, picture_tokens.shape[1] - 1)
        place = seen - (ends - picture_tokens).gather(1, own)  # of a visual token within its picture
        width = picture_grids[..., 1].gather(1, own).clamp_min(1)
        row = torch.div(place, width, rounding_mode="trunc")
        offset = torch.stack([torch.zeros_like(place), row, place - row * width])
        planes = torch.where(visual, base + offset, base)
        following = torch.where(real, planes, -1).amax((0, 2)) + 1
        if self.planes == 4:
            planes = torch.cat([plain[None], planes])
        return planes, following

    def step(self, following: Tensor, plain: Tensor, step: Tensor) -> Tensor:
        """position_ids [B, 1] or [planes, B, 1] of new token number `step` [1]; `plain` [B]: of the first one, uncompressed."""
        position = (following + step).unsqueeze(1)
        if not self.planes:
            return position
        planes = position.expand(3, -1, -1)
        return planes if self.planes == 3 else torch.cat([(plain + step).view(1, -1, 1), planes])


def _before(visual: Tensor) -> Tensor:
    """How many visual tokens of its row stand before each token [B, S]."""
    return visual.long().cumsum(1) - visual.long()


@dataclass(frozen=True)
class MaskRule:
    """What a token may see: earlier ones within `window` (0: all), and those of its own picture, or all of the prompt."""

    window: int = 0
    both_ways: Literal["", "image", "prompt"] = ""

    def allowed(self, segment: Tensor) -> Tensor:
        """Boolean [B, 1, S, S]; a padding token sees itself, so that no row is empty."""
        n = segment.shape[1]
        here = torch.arange(n, device=segment.device)
        back = here[:, None] - here
        seen = (back >= 0) & (back < self.window if self.window else back >= 0)
        seen = seen.expand(len(segment), -1, -1)
        if self.both_ways == "image":
            seen = seen | same_image(segment, segment)
        elif self.both_ways == "prompt":
            seen = seen | (back < 0)
        seen = (seen & (segment != PADDING)[:, None]) | (back == 0)
        return seen.unsqueeze(1)

    @staticmethod
    def of(name: str, mask: Tensor, segment: Tensor, window: int | None) -> MaskRule:
        """The rule that the model's own `mask` [B, 1, S, S] follows. Raises CaptureError where none does."""
        allowed = mask if mask.dtype == torch.bool else mask >= 0
        real = (segment != PADDING)[:, None, :, None]
        for span, both_ways in product((0, window or 0), ("", "image", "prompt")):
            rule = MaskRule(span, both_ways)
            if bool(((rule.allowed(segment) == allowed) | ~real).all()):
                return rule
        raise CaptureError(
            f"{name}: the model's attention mask follows none of the rules that an artifact can compute (causal, windowed, "
            "pictures or the whole prompt in both directions)"
        )


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of `dtype` from a boolean one."""
    return allowed if dtype == torch.bool else allowed.logical_not().to(dtype) * torch.finfo(dtype).min
