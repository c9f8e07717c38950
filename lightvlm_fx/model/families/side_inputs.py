"""Decoders that add visual features again inside their first layers (DeepStack, Qwen3-VL and kin).

They receive `visual_pos_masks` [B, S] and a list of features [N, D] for the marked tokens. A boolean
selection has a data-dependent shape, so capture hands the decoder dense features [B, S, D] instead, zero
where nothing is added: the same sum, with a token dimension that a cut can follow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightvlm_fx.compat import DEEPSTACK

MASK, FEATURES = "visual_pos_masks", "deepstack_visual_embeds"


def _add_dense(hidden: Tensor, mask: Tensor, dense: Tensor) -> Tensor:
    return hidden + dense.to(hidden.dtype)


def make_dense(decoder: nn.Module, kwargs: dict[str, Any], levels: int) -> None:
    """Replace sparse DeepStack features in `kwargs` by dense ones; nothing is done to a decoder that takes none.

    Where a prompt brings none, `levels` of zeros stand for them, so that prompts without pictures run the same graph.
    """
    if not hasattr(decoder, DEEPSTACK):
        return
    features, like = kwargs.get(FEATURES), kwargs["inputs_embeds"]
    if features is None:
        if levels:
            kwargs[FEATURES] = [torch.zeros_like(like)] * levels
            kwargs[MASK] = torch.zeros(like.shape[:2], dtype=torch.bool, device=like.device)
        return
    mask = kwargs[MASK]
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
    if hasattr(decoder_copy, DEEPSTACK):
        object.__setattr__(decoder_copy, DEEPSTACK, _add_dense)
