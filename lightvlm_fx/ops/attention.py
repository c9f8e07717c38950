"""Marker of one decoder layer's attention, emitted at capture and lowered before compiling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.library.custom_op("lightvlm::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, layer: int, window: int, softcap: float
) -> Tensor:
    """Causal attention of rotated q [B, H, S, d] over k, v [B, G, S, d]; returns [B, S, H, d].

    `mask` [B, 1, S, S] (True may attend, or an additive float) replaces the causal rule where given.
    `window` (0 for none) is the layer's sliding window; a prefill longer than it always comes with a mask,
    a decode step applies it. `softcap` (0 for none) caps the logits as Gemma 2 does.
    """
    return attend(q, k, v, mask, scale, softcap)


@attention.register_fake
def _(q, k, v, mask, scale, layer, window, softcap):
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float = 0.0) -> Tensor:
    """What the marker means, on scaled_dot_product_attention where that can express it."""
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    if not softcap:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
        return out.transpose(1, 2).contiguous()
    logits = torch.tanh(q @ k.transpose(2, 3) * scale / softcap) * softcap
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    lowest = torch.finfo(logits.dtype).min  # not -inf: a padding query sees no key, and NaN would spread through its value
    logits = logits.masked_fill(~mask, lowest) if mask.dtype == torch.bool else (logits + mask).clamp_min(lowest)
    return (logits.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).contiguous()
