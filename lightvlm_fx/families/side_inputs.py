"""Decoders that add visual features again inside their first layers (DeepStack, Qwen3-VL and kin).

They receive `visual_pos_masks` [B, S] and a list of features [N, D] for the marked tokens. A boolean
selection has a data-dependent shape, so capture hands the decoder dense features [B, S, D] instead, zero
where nothing is added: the same sum, with a token dimension that a cut can follow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MASK, FEATURES, HOOK = "visual_pos_masks", "deepstack_visual_embeds", "_deepstack_process"


def _add_dense(hidden: Tensor, mask: Tensor, dense: Tensor) -> Tensor:
    return hidden + dense.to(hidden.dtype)


def make_dense(decoder: nn.Module, kwargs: dict[str, Any]) -> None:
    """Replace sparse DeepStack features in `kwargs` by dense ones, in place of the dict; no-op without them."""
    features = kwargs.get(FEATURES)
    if features is None or not hasattr(decoder, HOOK):
        return
    mask, like = kwargs[MASK], kwargs["inputs_embeds"]
    if mask.ndim == 3:
        mask = mask[..., 0]
    dense = []
    for feature in features:
        full = torch.zeros_like(like)
        full[mask] = feature.to(like)
        dense.append(full)
    kwargs[FEATURES] = dense


def accept_dense(decoder_copy: nn.Module) -> None:
    """Make a private copy of a decoder add dense features; the model's own decoder is not touched."""
    if hasattr(decoder_copy, HOOK):
        object.__setattr__(decoder_copy, HOOK, _add_dense)
