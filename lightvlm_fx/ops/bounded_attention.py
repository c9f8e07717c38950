"""Attention of new tokens over one layer's bounded cache: who leaves, the write, the read, the running score.

Shapes: C slots; `position` [B, G, C] (or [B, 1, C], shared by the heads) is the sequence index that each slot
holds, EMPTY, or CLOSED for a slot that this row may not use; `score` has the shape of `position`, float32.
Positions are logical, so slots may stand in any order, and a victim's slot is simply overwritten (patterns S2 and
S3 of methods-decode.md 1.5).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightvlm_fx.carries import CARRY

EMPTY, CLOSED = -1, -2


def victims(
    position: Tensor, score: Tensor | None, query: Tensor, start: Tensor, n: int, sinks: int, recent: int
) -> tuple[Tensor, Tensor]:
    """The `n` slots [B, G, n] that are given up first, and how far each is worth keeping: -inf for an empty one.

    The first `sinks` positions of a row (from `start` [B] on) and the `recent` before the newest of `query` [Q]
    are worth inf. Without a score the oldest goes first; of equal worth the older one, wherever it stands.
    """
    worth = position.float() if score is None else score
    protected = (position < (start + sinks)[:, None, None]) | (position > query[-1] - recent)
    worth = torch.where(protected, float("inf"), worth)
    worth = torch.where(position == EMPTY, float("-inf"), torch.where(position == CLOSED, float("inf"), worth))
    if n == 1:
        least = worth.amin(-1, keepdim=True)
        # as floats, exact below 2**24 tokens: ONNX Runtime's CUDA provider has no ArgMin of whole numbers
        slot = torch.where(worth == least, position.float(), float("inf")).argmin(-1, keepdim=True)
        return slot, least
    by_age = position.argsort(dim=-1, stable=True)
    values, at = worth.gather(-1, by_age).sort(dim=-1, stable=True)
    return by_age.gather(-1, at[..., :n]), values[..., :n]


def attend_bounded(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: Tensor, score: Tensor | None,
    size: Tensor | None, query: Tensor, start: Tensor, slot: Tensor | None, scale: float, softcap: float, window: int,
    rule: str, sinks: int, recent: int, decay: float, limit: Tensor | None,
) -> Tensor:  # fmt: skip
    """Write k, v [B, G, Q, d] into `keys`, `values` [B, G, C, d], attend with q [B, H, Q, d]; returns [B, Q, H, d].

    `query` [Q]: sequence index of each new token. With `slot` [Q] they are appended there; without, they
    overwrite the victims. `limit` [B] empties victims' slots first until the new tokens fit into that
    many entries of the row: what overwriting does, on a cache that only grows. `rule`, the name of a KV score, brings the score
    up to date, which fades by `decay`. With `size`, shaped as `position`, a slot counts as the tokens it stands for.
    """
    n, d = q.shape[2], k.shape[3]
    if slot is None:
        slot, _ = victims(position, score, query, start, n, sinks, recent)
    elif limit is not None:
        out, worth = victims(position, score, query, start, position.shape[2], sinks, recent)
        held = worth > float("-inf")
        nth = held.cumsum(-1)  # lowest first; empty slots come before all
        leaves = held & (nth <= held.sum(-1, keepdim=True) + n - limit[:, None, None])
        position.scatter_(2, out, torch.where(leaves, EMPTY, position.gather(2, out)))
    _write(keys, values, position, score, size, k, v, query, slot)
    seen = (position >= 0).unsqueeze(2) & (position.unsqueeze(2) <= query[:, None])  # [B, G, Q, C]
    if window:
        seen = seen & (query[:, None] - position.unsqueeze(2) < window)
    b, h, _, _ = q.shape
    g = keys.shape[1]
    grouped = q.reshape(b, g, h // g * n, d)
    if score is None and not softcap:
        mask = seen if size is None else torch.where(seen, size.log().unsqueeze(2), float("-inf")).to(q.dtype)
        mask = mask if n == 1 else mask.repeat(1, 1, h // g, 1)
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    else:
        logits = (grouped @ keys.transpose(2, 3)).float().reshape(b, g, h // g, n, -1) * scale
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        if size is not None:
            logits = logits + size.log()[:, :, None, None]
        probabilities = logits.masked_fill(~seen.unsqueeze(2), torch.finfo(torch.float32).min).softmax(-1)
        if score is not None:
            CARRY[rule](score, probabilities, seen, decay)
        out = probabilities.to(values.dtype).reshape(b, g, h // g * n, -1) @ values
    return out.reshape(b, h, n, -1).transpose(1, 2)


def _write(
    keys: Tensor, values: Tensor, position: Tensor, score: Tensor | None, size: Tensor | None,
    k: Tensor, v: Tensor, query: Tensor, slot: Tensor,
) -> None:  # fmt: skip
    if slot.ndim == 1:
        keys.index_copy_(2, slot, k)
        values.index_copy_(2, slot, v)
        position.index_copy_(2, slot, query.expand(*position.shape[:2], -1))
        for fresh, x in ((0.0, score), (1.0, size)):
            if x is not None:
                x.index_fill_(2, slot, fresh)
        return
    position.scatter_(2, slot, query.expand(slot.shape))
    for fresh, x in ((0.0, score), (1.0, size)):
        if x is not None:
            x.scatter_(2, slot, torch.full_like(slot, fresh, dtype=x.dtype))
    everywhere = slot.unsqueeze(-1).expand(k.shape)
    keys.scatter_(2, everywhere, k)
    values.scatter_(2, everywhere, v)


def over_heads(received: Tensor, score: Tensor) -> Tensor:
    """What slots received [B, G, H/G, Q, C] as [B, G, Q, C], or [B, 1, Q, C] where the heads share one `score`."""
    return received.mean((1, 2), keepdim=True).squeeze(2) if score.shape[1] == 1 else received.mean(2)


def shrink(
    keys: Tensor, values: Tensor, position: Tensor, score: Tensor | None, size: Tensor | None,
    query: Tensor, start: Tensor, sinks: int, recent: int, capacity: int,
) -> None:  # fmt: skip
    """Move the `capacity` entries that are worth most to the first slots, in place, and empty the others (pattern S6)."""
    out, _ = victims(position, score, query, start, position.shape[2], sinks, recent)
    index = out[..., -capacity:].sort(-1).values
    for x, fresh in ((keys, None), (values, None), (position, -1), (score, 0), (size, 1)):
        if x is None:
            continue
        at = index if x.ndim == 3 else index.expand(-1, x.shape[1], -1).unsqueeze(-1).expand(-1, -1, -1, x.shape[3])
        x[:, :, :capacity] = x.gather(2, at)
        if fresh is not None:
            x[:, :, capacity:] = fresh


torch.fx.wrap("attend_bounded")
