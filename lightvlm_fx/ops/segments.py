"""The two special values of a segment array, and the helpers that several ops share."""

from __future__ import annotations

import torch
from torch import Tensor

PADDING = -2
TEXT = -1


def per_group(q: Tensor, k: Tensor) -> Tensor:
    """Queries [B, H, Q, d] as [B, G, H/G, Q, d], so that they meet keys [B, G, S, d] without repeating them."""
    b, h, s, d = q.shape
    return q.reshape(b, k.shape[1], h // k.shape[1], s, d)


def scaled(k: Tensor, scale: float) -> Tensor:
    """Keys [B, G, S, d] as float32 [B, G, 1, d, S]: queries `per_group` times these are logits. Fewer numbers to scale than theirs."""
    return (k.float() * scale).transpose(2, 3).unsqueeze(2)


def by_score(score: Tensor, segment: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens [B, S] sorted by falling score, ties to the earlier token; and their segments."""
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    return order, segment.gather(1, order)


def by_segment(score: Tensor, segment: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens [B, S] sorted by segment and within it as by `by_score`; and their segments."""
    order, kinds = by_score(score, segment)
    sorted_ = torch.sort(kinds, dim=-1, stable=True)
    return order.gather(1, sorted_.indices), sorted_.values


def rank_in_segment(score: Tensor, segment: Tensor) -> Tensor:
    """Rank [B, S] of each token within its segment, 0 for the highest score; ties go to the earlier token."""
    order, kinds = by_segment(score, segment)
    place = torch.arange(score.shape[1], device=score.device).expand_as(order)
    new = torch.ones_like(order, dtype=torch.bool)
    new[:, 1:] = kinds[:, 1:] != kinds[:, :-1]
    run = new.long().cumsum(1)  # one number a segment, from 1; exporters make a cummax of [B, S, S]
    first = torch.zeros(order.shape[0], order.shape[1] + 1, dtype=order.dtype, device=order.device)
    first = first.scatter(1, torch.where(new, run, 0), place).gather(1, run)  # slot 0 takes what begins no segment
    return torch.empty_like(order).scatter_(1, order, place - first)


def over_image(x: Tensor, segment: Tensor) -> Tensor:
    """Of each visual token the sum [B, S] float32 of x [B, S] over its image."""
    slot = segment.clamp_min(0)
    x = torch.where(segment >= 0, x.float(), 0.0)
    return torch.zeros_like(x).scatter_add(1, slot, x).gather(1, slot)


def portion(budget: Tensor, share: float) -> Tensor:
    """round(share * budget), halves up."""
    return (budget.float() * share + 0.5).floor().long()


def same_image(a: Tensor, b: Tensor) -> Tensor:
    """Boolean [B, len(a), len(b)]: both are tokens of one image. `a` [B, n] and `b` [B, m] are segments."""
    return (a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]


def image_tokens(segment: Tensor) -> Tensor:
    """How many tokens [B, S] the image of each token has; of text, any number. `segment` [B, S]."""
    own = segment.clamp_min(0)  # fewer images than tokens
    return torch.zeros_like(own, dtype=torch.float32).scatter_add(1, own, (segment >= 0).float()).gather(1, own)


def unit(x: Tensor) -> Tensor:
    """Rows of length one, in float32."""
    x = x.float()
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def text_after_pictures(segment: Tensor) -> Tensor:
    """Boolean [B, S]: text after the row's last visual token, which alone sees all of it; all text of a row without pictures."""
    here = torch.arange(segment.shape[1], device=segment.device)
    last = torch.where(segment >= 0, here, -1).amax(1, keepdim=True)
    return (segment == TEXT) & (here > last)


def heads_as_rows(x: Tensor, shared: bool) -> Tensor:
    """Entries [B, G, S, d] as [B * G, S, d], or side by side as [B, S, G * d] where the heads share a choice."""
    return x.transpose(1, 2).flatten(2) if shared else x.flatten(0, 1)
