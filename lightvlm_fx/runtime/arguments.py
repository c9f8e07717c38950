"""What the arguments of a decoder call must be for a graph: masks that the batch needs and no others, positions a row, pieces of a turn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightvlm_fx.errors import NotSupported
from lightvlm_fx.model.families.side_inputs import FEATURES, MASK
from lightvlm_fx.model.layout import Plan


def positions(given: Tensor | None, planes: int, rows: int, length: int, device: torch.device) -> Tensor:
    """position_ids [B, S], or [planes, B, S] for M-RoPE, one for every row."""
    if given is None:
        given = torch.arange(length, device=device)[None]
        if planes:
            given = given.expand(planes, 1, -1)
    return given.expand(*given.shape[:-2], rows, -1).contiguous()  # strides, too, are something a compiled graph relies on


def set_mask(config: Any, kwargs: dict[str, Any], plan: Plan, flat: Tensor | None) -> bool:
    """Leave in `kwargs` only the mask that the batch needs; say whether layers read explicit masks."""
    embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
    rows, length = embeds.shape[:2]
    given = isinstance(mask, dict) or (mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2))
    entries = mask if isinstance(mask, dict) else {"": mask}
    window = getattr(config, "sliding_window", None) or length

    def plain(key: str) -> Tensor:
        causal = torch.ones(length, length, dtype=torch.bool, device=embeds.device).tril()
        seen = causal & ~causal.tril(-window) if "sliding" in key else causal
        return seen.expand(rows, 1, -1, -1)

    if given and any(m is not None for m in entries.values()):
        for m in entries.values():
            if m is not None and not (isinstance(m, Tensor) and m.ndim == 4):
                raise NotSupported(
                    f"the model makes attention masks of type {type(m).__name__} that a graph cannot carry; "
                    "load it with attn_implementation='sdpa'"
                )
        full = {key: plain(key) if m is None else m.expand(rows, -1, -1, -1) for key, m in entries.items()}
        kwargs["attention_mask"] = full if isinstance(mask, dict) else full[""]
        return True
    masked = plan.masked or length > window or (flat is not None and not bool(flat.all()))
    if isinstance(mask, dict):
        kwargs["attention_mask"] = {key: plain(key) if masked else None for key in mask}
        return masked
    kwargs.pop("attention_mask", None)
    if masked:
        everything = torch.ones(rows, length, dtype=torch.int64, device=embeds.device)
        kwargs["attention_mask"] = everything if flat is None else flat
    return masked


def refuse_looking_ahead(mask: Any, new: int) -> None:
    """Raise NotSupported where new tokens after a cache attend to later ones: a step's mask is its own, and causal."""
    for m in mask.values() if isinstance(mask, dict) else [mask]:
        if new > 1 and isinstance(m, Tensor) and m.ndim == 4:
            seen = m[..., -new:] if m.dtype == torch.bool else m[..., -new:] >= 0
            if bool(seen.triu(1).any()):
                raise NotSupported(
                    "a later turn brings a picture whose tokens attend to each other in both directions, "
                    "which only the first prompt of a compiled model can do; start again without past_key_values"
                )


def tokens_of(kwargs: dict[str, Any], first: int, end: int) -> dict[str, Any]:
    """The arguments of a call for some of its new tokens."""
    new = kwargs["inputs_embeds"].shape[1]
    if (first, end) == (0, new):
        return kwargs
    out = dict(kwargs, inputs_embeds=kwargs["inputs_embeds"][:, first:end], position_ids=kwargs["position_ids"][..., first:end])
    if FEATURES in out:
        out[FEATURES] = [feature[:, first:end] for feature in out[FEATURES]]
        out[MASK] = out[MASK][:, first:end]
    return out
