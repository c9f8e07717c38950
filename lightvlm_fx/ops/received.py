"""Attention that keys received, from what attention itself found out about its rows: no softmax over all pairs a second time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lightvlm_fx.ops.segments import PADDING, TEXT, per_group, scaled
from lightvlm_fx.ops.tiles import tiles, wanted


@torch.library.custom_op("lightvlm::received", mutates_args=())
def received(q: Tensor, k: Tensor, norm: Tensor, segment: Tensor, mask: Tensor | None, scale: float, text: bool) -> Tensor:
    """Column sums [B, G, S] float32 of attention over the rows of segment [B, S] that are no padding, mean over the heads of each group.

    q [B, H, S, d], k [B, G, S, d]; norm [B, H, S] float32 from `attend_and_norm`; mask [B, 1, S, S] replaces the causal rule where given.
    With `text`, of keys of text alone, 0 of others.
    """
    b, g, s, d = k.shape
    here, real = torch.arange(s, device=q.device), segment != PADDING
    at = wanted(segment == TEXT) if text else None
    columns = here.expand(b, s) if at is None else at  # [B, n]
    keys = k if at is None else k.gather(2, at[:, None, :, None].expand(b, g, -1, d))
    keys, norm = scaled(keys, scale), per_group(torch.where(real.unsqueeze(1), norm, 0.0).unsqueeze(-1), k)
    counts = (segment == TEXT if text else real).gather(1, columns).unsqueeze(1)
    total = torch.zeros(b, g, columns.shape[1], dtype=torch.float32, device=q.device)
    for start, stop in _rows(q, s, columns.shape[1], segment if at is not None and mask is None else None):
        last = columns.shape[1]
        if mask is None:  # no row of the tile sees a later key
            last = stop if at is None else int((counts[:, 0] & (at < stop)).sum(1).max())
        seen = counts[..., :last] & real[:, start:stop, None]
        if mask is None:
            seen = seen & (columns[:, None, :last] <= here[start:stop, None])
        else:
            part = mask[:, 0, start:stop].gather(2, columns.unsqueeze(1).expand(b, stop - start, -1))
            seen = seen & (part if part.dtype == torch.bool else part >= 0)
        products = per_group(q[:, :, start:stop].float(), k) @ keys[..., :last] - norm[..., start:stop, :]
        # of what is seen nothing is above 0; of the rest a product: processors take long for the exponentials of the lowest numbers
        attended = products.clamp_max_(0).exp_().mul_(seen.float()[:, None, None])
        total = total + F.pad(attended.sum(3).mean(2), [0, columns.shape[1] - last])
    if at is not None:
        total = torch.zeros(b, g, s, dtype=torch.float32, device=q.device).scatter_(2, at.unsqueeze(1).expand_as(total), total)
    return torch.where((segment == TEXT).unsqueeze(1), total, 0.0) if text else total


def _rows(q: Tensor, s: int, columns: int, segment: Tensor | None) -> Iterator[tuple[int, int]]:
    """Begin and end of each tile of rows. Where text alone is looked at, of `segment` [B, S]: all rows before the last picture's end see
    little of it, and are one tile.
    """
    end = 0 if segment is None else int(((segment >= 0) * torch.arange(1, s + 1, device=q.device)).amax(1).min())
    if end:
        yield 0, end
    yield from tiles(q, s, q.shape[0] * q.shape[1] * columns, end)


@received.register_fake
def _(q, k, norm, segment, mask, scale, text):
    return k.new_empty(k.shape[:3], dtype=torch.float32)
