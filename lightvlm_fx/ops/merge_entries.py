"""Combine: dropped visual cache entries are averaged into the survivor of their image that they resemble most."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.kv_score_density import heads_as_rows
from lightvlm_fx.ops.segments import PADDING

OPS = torch.ops.lightvlm


@torch.library.custom_op("lightvlm::merge_entries", mutates_args=())
def merge_entries(
    keys: Tensor, values: Tensor, size: Tensor | None, worth: Tensor | None, segment: Tensor, index: Tensor, entry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values [B, G, K, d] of the survivors, the tokens each stands for and what they are worth together [B, G, K].

    keys, values [B, G, S, d], size [B, S] (None: ones), worth [B, G, S] (None: zeros), segment [B, S]; index, entry
    [B, G, K] from `keep_entries`. Where the heads share a choice, G is 1 in index, entry, worth and the last two results.
    What resembles what is said by the values; keys, rotated as they are, are averaged alike. With its size counted in
    attention, a survivor answers as all that it stands for would, as far as they are equal.
    """
    (b, g), (heads, k) = values.shape[:2], index.shape[1:]
    shared = heads < g
    held = torch.cat([keys, values], -1)
    rows = segment.repeat_interleave(heads, 0)
    size = torch.ones_like(rows, dtype=torch.float32) if size is None else size.repeat_interleave(heads, 0)
    at, there = index.flatten(0, 1), entry.flatten(0, 1)
    left = torch.where(there >= 0, rows.gather(1, at), PADDING)
    went = OPS.nearest_survivor(heads_as_rows(values, shared), rows, at, left)
    merged, grown = OPS.merge_tokens(heads_as_rows(held, shared), size, at, went)
    merged = merged.view(b, k, g, -1).transpose(1, 2) if shared else merged.view(b, g, k, -1)
    total = torch.zeros_like(grown)
    if worth is not None:
        total.scatter_add_(1, went.clamp_min(0), torch.where(went >= 0, worth.flatten(0, 1), 0.0))
    width = keys.shape[3]
    return merged[..., :width].contiguous(), merged[..., width:].contiguous(), grown.view(b, heads, k), total.view(b, heads, k)


@merge_entries.register_fake
def _(keys, values, size, worth, segment, index, entry):
    b, g, _, d = values.shape
    k = index.shape[2]
    counted = values.new_empty(index.shape, dtype=torch.float32)
    return keys.new_empty(b, g, k, keys.shape[3]), values.new_empty(b, g, k, d), counted, torch.empty_like(counted)
