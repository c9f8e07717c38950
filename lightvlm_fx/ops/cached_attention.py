"""Attention of new tokens over one layer's cache buffer, and the mask that a span of layers, between two cuts, shares."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightvlm_fx.ops.attention import attend


def cache_mask(position: Tensor, query: Tensor, window: int, size: Tensor | None = None) -> Tensor:
    """Which slots a query may read: boolean [B, 1, Q, C]; with `size`, additive with the log of it.

    `position` [B, C] is the sequence index that each slot holds (-1: empty, padding or unused), `query` [Q]
    the sequence index of each new token, `window` the layer's sliding window (0 for none), `size` [B, C] the
    tokens that each slot stands for.
    """
    held, now = position[:, None, None, :], query[None, None, :, None]
    seen = (held >= 0) & (held <= now)
    if window:
        seen = seen & (now - held < window)
    return seen if size is None else torch.where(seen, size.log()[:, None, None, :], float("-inf"))


def attend_cached(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slot: Tensor, mask: Tensor, scale: float, softcap: float
) -> Tensor:
    """Write k, v [B, G, Q, d] into `keys`, `values` [B, G, C, d] at `slot` [Q], then attend; returns [B, Q, H, d].

    The cache stays at G heads: for a single query the heads of one group stand in for its query axis.
    """
    keys.index_copy_(2, slot, k)
    values.index_copy_(2, slot, v)
    b, h, n, d = q.shape
    g = keys.shape[1]
    if n > 1 or softcap:
        return attend(q, keys, values, mask, scale, softcap)
    if mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    grouped = q.reshape(b, g, h // g, d)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    return out.reshape(b, 1, h, values.shape[3])


def hold(position: Tensor, slot: Tensor, query: Tensor) -> Tensor:
    """Note in `position` [B, C] that `slot` [Q] now holds the tokens of sequence index `query` [Q]; in place."""
    return position.index_copy_(1, slot, query.expand(position.shape[0], -1))


def shifted(position_ids: Tensor, shift: Tensor) -> Tensor:
    """RoPE positions [B, Q] of new tokens where `shift` [B] earlier ones of the row are gone (compact policy)."""
    return position_ids - shift[:, None]


# The four are plain functions, called from the decode graph and traced into by torch.compile: they are
# marked so that FX prints and looks them up by these names.
for _function in (cache_mask, attend_cached, hold, shifted):
    torch.fx.wrap(_function.__name__)
