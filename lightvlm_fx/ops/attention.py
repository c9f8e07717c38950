"""Marker of one decoder layer's attention, emitted at capture and lowered before compiling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightvlm_fx.compat import flash_attention

ROOM = 8  # head dimensions that counted keys add; fused kernels like multiples of it


@torch.library.custom_op("lightvlm::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, layer: int, window: int, softcap: float,
    size: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Causal attention of rotated q [B, H, S, d] over k, v [B, G, S, d]; returns [B, S, H, d].

    `mask` [B, 1, S, S] (True may attend, or an additive float) replaces the causal rule where given.
    `window` (0 for none) is the layer's sliding window; a prefill longer than it always comes with a mask,
    a decode step applies it. `softcap` (0 for none) caps the logits as Gemma 2 does. With `size` [B, S] float32 a
    key counts as so many tokens (ToMe's proportional attention, arXiv 2210.09461): merging equal keys changes nothing.
    """
    return attend(q, k, v, mask, scale, softcap, size)


@attention.register_fake
def _(q, k, v, mask, scale, layer, window, softcap, size=None):
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float = 0.0, size: Tensor | None = None
) -> Tensor:
    """What the marker means, on scaled_dot_product_attention where that can express it."""
    width, bias = v.shape[3], None if size is None else size.clamp_min(1).log()[:, None, None, :]  # [B, 1, 1, S]
    if bias is not None and not softcap:
        q, k, v = counted(q, k, v, bias / scale)
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    if not softcap:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
        return out[..., :width].transpose(1, 2).contiguous()
    logits = torch.tanh(q @ k.transpose(2, 3) * scale / softcap) * softcap
    if bias is not None:
        logits = logits + bias
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    lowest = torch.finfo(logits.dtype).min  # not -inf: a padding query sees no key, and NaN would spread through its value
    logits = logits.masked_fill(~mask, lowest) if mask.dtype == torch.bool else (logits + mask).clamp_min(lowest)
    return (logits.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).contiguous()


def attend_and_norm(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, size: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`attend` on a processor, for values as wide as keys, and the logarithm [B, H, S] float32 of what the exponentials of each row sum up
    to, every key counted once.
    """
    width = v.shape[3]
    if size is not None:
        q, k, v = counted(q, k, v, size.clamp_min(1).log()[:, None, None, :] / scale)
        once = (1 / size.clamp_min(1)).to(v.dtype)[:, None, :, None].expand(*v.shape[:3], 1)
        v = torch.cat([v[..., :width], once, v[..., width + 1 :]], -1)  # in place of a zero: the share of a row that is left, each key once
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out, norm = flash_attention(q, k, v, mask, scale)
    if size is not None:
        norm = norm + out[..., width].float().log()
    return out[..., :width].transpose(1, 2).contiguous(), norm


def counted(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same q [B, H, S, d] and k, v [B, G, S, d], but wider by ROOM: q k^T is `bias` [B, 1, 1, S] float32 larger in each column.

    Two dimensions of ones meet the bias in two parts, whose sum is as exact in half precision as the logits' own sums are. A
    mask that says the same would hold S x S numbers, and keep fused kernels from skipping what a causal rule hides.
    """
    bias = bias.transpose(2, 3)  # [B, 1, S, 1]
    high = bias.to(k.dtype)
    parts = torch.cat([high, (bias - high.float()).to(k.dtype)], -1)
    k = torch.cat([k, _wider(parts, ROOM).expand(-1, k.shape[1], -1, -1)], -1)
    ones = _wider(q.new_ones(2), ROOM).expand(*q.shape[:3], -1)
    return torch.cat([q, ones], -1), k, _wider(v, k.shape[3])


def _wider(x: Tensor, width: int) -> Tensor:
    """`x` with zeros up to `width`; not by F.pad, which takes symbolic sizes for the numbers they are traced at."""
    more = width - x.shape[-1]
    return torch.cat([x, x.new_zeros(*x.shape[:-1], more)], -1) if more > 0 else x
