"""A model's own vision tower in the three forms that take pictures of every size, as modules of tensors.

What they are fed with artifact/pictures.py works out; which of them a model takes says exporters/towers.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface

from lightvlm_fx.compat import packed_attention
from lightvlm_fx.exporters.tower_cuts import Cutting, TowerCall, current, tiled
from lightvlm_fx.exporters.vision import Tower, flat
from lightvlm_fx.model.locate import vision_tower
from lightvlm_fx.model.salience import noting, salience

PACKED = "lightvlm_flash_packed"  # towers hand attention of such a name all patches at once, with what says which belong together


class Whole(TorchFunctionMode):
    """Leave a tensor whole that code takes apart along a symbolic dimension (LLaVA: a list of each picture's features)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.unbind, Tensor.__len__) and isinstance(args[0].shape[0], torch.SymInt):
            return [args[0]] if func is Tensor.unbind else 1  # a list asks for the length first
        return func(*args, **(kwargs or {}))


class Tiles(nn.Module):
    """Squares [n, C, H, W] to features; `patch_mask` [n, h, w] says which patches of them hold real pixels."""

    def __init__(self, model: Any, how: dict[str, Any], with_salience: bool, cutting: Cutting | None = None) -> None:
        super().__init__()
        self.tower = Tower(model, {}, with_salience and cutting is None)
        self.inner, self.watched = self.tower.inner, self.tower.watched
        self.cutting, self.tokens = cutting, how["tokens"]

    def forward(self, pixel_values: Tensor, patch_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        if self.cutting:
            with self.cutting.over(tiled(pixel_values, self.tokens, tuple(self.cutting.cuts.values()))):
                features, *more = self._features(pixel_values, patch_mask)
                return features, self.cutting.alive().flatten(), *more
        if not self.watched:
            return self._features(pixel_values, patch_mask)
        with noting(self.watched[0]) as noted:
            features, *more = self._features(pixel_values, patch_mask)
        return features, salience(noted, features.shape[0]), *more

    def _features(self, pixel_values: Tensor, patch_mask: Tensor | None) -> tuple[Tensor, ...]:
        if patch_mask is None:
            with Whole():
                return self.tower._features(pixel_values)
        hidden = self.inner.vision_model(pixel_values=pixel_values, patch_attention_mask=patch_mask, return_dict=True).last_hidden_state
        return (flat(self.inner.connector(hidden)),)


class AnyRes(nn.Module):
    """Tiles [n, C, H, W] of LLaVA-NeXT to features, in the order `feature_index` [M] over all tiles' tokens (-1: the newline)."""

    def __init__(self, model: Any, how: dict[str, Any], with_salience: bool, cutting: Cutting | None = None) -> None:
        super().__init__()
        self.inner, config = getattr(model, "model", model), model.config
        self.layer, self.strategy = config.vision_feature_layer, config.vision_feature_select_strategy

    def forward(self, pixel_values: Tensor, feature_index: Tensor) -> tuple[Tensor, ...]:
        out = self.inner.vision_tower(pixel_values, output_hidden_states=True, return_dict=True)
        layers = [self.layer] if isinstance(self.layer, int) else self.layer
        hidden = torch.cat([out.hidden_states[i] for i in layers], -1)
        hidden = hidden[:, 1:] if self.strategy == "default" else hidden
        features = flat(self.inner.multi_modal_projector(hidden))
        newline = self.inner.image_newline[None].to(features)
        return (torch.cat([features, newline])[torch.where(feature_index < 0, features.shape[0], feature_index)],)


@dataclass
class Blocks:
    """Patches that attend to each other, block by block [n, w] (-1: none), and where in them each patch stands [N]."""

    index: Tensor
    back: Tensor


def _attend_packed(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any = None, **options: Any) -> tuple[Tensor, None]:
    """Attention of q, k, v [1, H, N, d] within the groups that a tower got as `cu_seqlens`: blocks, or a group's number of each patch."""
    groups, scale, cutting = options["cu_seq_lens_q"], options.get("scaling"), current()
    groups = cutting.groups(groups) if cutting else groups
    if not isinstance(groups, Blocks):
        mask = (groups[:, None] == groups)[None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2), None
    at, mask = groups.index.clamp_min(0), groups.index >= 0
    if cutting and (bias := cutting.bias(q)) is not None:
        mask = bias[0][at].masked_fill(~mask, torch.finfo(q.dtype).min)
    one, two, three = (x[0].transpose(0, 1)[at].transpose(1, 2) for x in (q, k, v))  # [n, H, w, d]
    out = F.scaled_dot_product_attention(one, two, three, attn_mask=mask[:, None, None], scale=scale)
    if cutting:
        cutting.attended(q, k, q.shape[-1] ** -0.5 if scale is None else float(scale))
    return out.transpose(1, 2).flatten(0, 1)[groups.back].unsqueeze(0), None


AttentionInterface.register(PACKED, _attend_packed)


class Patches(nn.Module):
    """Packed patches [N, W] of pictures of any shape to features [N / merge^2, D], and DeepStack features."""

    def __init__(self, model: Any, how: dict[str, Any], with_salience: bool, cutting: Cutting | None = None) -> None:
        super().__init__()
        self.visual, self.cutting, self.together = vision_tower(model), cutting, how["merge"] ** 2

    def forward(self, pixel_values: Tensor, position_ids: Tensor, **more: Tensor) -> tuple[Tensor, ...]:
        if not self.cutting:
            return self._features(pixel_values, position_ids, **more)
        numbers = range(len(self.cutting.cuts))
        blocks = [Blocks(more[f"left_{i}_blocks"], more[f"left_{i}_back"]) for i in numbers]
        stay = [group.back.shape[0] // self.together for group in blocks]
        with self.cutting.over(TowerCall(more["picture_of_unit"][None], [more[f"left_{i}"][None] for i in numbers], stay, blocks)):
            features, *rest = self._features(pixel_values, position_ids, **more)
            alive = self.cutting.alive()[0]
        return features, alive[more["window_index"].argsort()] if "window_index" in more else alive, *rest

    def _features(self, pixel_values: Tensor, position_ids: Tensor, **more: Tensor) -> tuple[Tensor, ...]:
        given: dict[str, Any] = {"position_ids": position_ids, "cu_seqlens": _groups("picture", more), "max_seqlen": 1}
        if "window_index" in more:
            given |= {"window_index": more["window_index"], "cu_window_seqlens": _groups("window", more), "max_window_seqlen": 1}
        given |= {name: more[name] for name in ("interp_indices", "interp_weights") if name in more}
        with packed_attention(self.visual, PACKED):
            out = self.visual(pixel_values.to(self.visual.dtype), grid_thw=None, return_dict=True, **given)
        return flat(out.pooler_output), *map(flat, getattr(out, "deepstack_features", None) or ())


def _groups(name: str, more: dict[str, Tensor]) -> Blocks | Tensor:
    number = more.get(f"{name}_of_patch")
    return Blocks(more[f"{name}_blocks"], more[f"{name}_back"]) if number is None else number
