"""How widely a layer's attention is spread: what adaptive budgets are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import PADDING, TEXT, per_group
from lightvlm_fx.ops.tiles import tiles

NEGLIGIBLE = 0.01  # of the row's largest weight (VL-Cache)


@torch.library.custom_op("lightvlm::kv_spread", mutates_args=())
def kv_spread(q: Tensor, k: Tensor, segment: Tensor, mask: Tensor | None, scale: float, kind: str) -> Tensor:
    """Of each row [B] float32: "density", the share of entries that the text behind the last visual token attends to
    with 1 % of its largest weight or more (VL-Cache, arXiv 2410.23317: one minus its sparsity); or "entropy", the mean
    entropy in nats of all rows' attention (MEDA, 2502.17599, as its code does it). Means over heads.

    q [B, H, S, d], k [B, G, S, d], segment [B, S]; mask [B, 1, S, S] replaces the causal rule where given.
    """
    s = segment.shape[1]
    here = torch.arange(s, device=segment.device)
    real = segment != PADDING
    last = torch.where(segment >= 0, here, -1).amax(1, keepdim=True)
    rows = (segment == TEXT) & (here > last) if kind == "density" else real
    total = torch.zeros(len(segment), dtype=torch.float32, device=q.device)
    out_of = torch.zeros_like(total)
    keys = k.float().transpose(2, 3).unsqueeze(2)
    for start, stop in tiles(q, s, q.shape[0] * q.shape[1] * s):
        if mask is None:
            seen = (here <= here[start:stop, None])[None] & real[:, None]
        else:
            part = mask[:, 0, start:stop]
            seen = (part if part.dtype == torch.bool else part >= 0) & real[:, None]
        counted = seen & rows[:, start:stop, None]
        logits = per_group(q[:, :, start:stop].float(), k) @ keys * scale
        attended = logits.masked_fill(~seen[:, None, None], torch.finfo(torch.float32).min).softmax(-1)
        if kind == "density":
            used = (attended >= NEGLIGIBLE * attended.amax(-1, keepdim=True)) & counted[:, None, None]
            total += used.float().mean((1, 2)).sum((1, 2))
            out_of += counted.sum((1, 2))
        else:
            entropy = torch.special.entr(attended).sum(-1).mean((1, 2))  # [B, tile]
            total += (entropy * rows[:, start:stop]).sum(1)
            out_of += rows[:, start:stop].sum(1)
    return total / out_of.clamp_min(1)


@kv_spread.register_fake
def _(q, k, segment, mask, scale, kind):
    return q.new_empty(len(segment), dtype=torch.float32)
