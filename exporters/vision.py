"""A vision stage for pictures of one size: a model's own tower and projector, with everything but the pixels as constants.

For towers that exporters/towers.py does not know how to feed with pictures of any size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightvlm_fx.compat import for_real, pytree
from lightvlm_fx.errors import CaptureError
from lightvlm_fx.model.families.patch_order import GRID
from lightvlm_fx.model.locate import vision_tower
from lightvlm_fx.model.salience import noting, salience
from lightvlm_fx.quiet import muted

FACTORIES = (torch.arange, torch.tensor)


class Fold(TorchFunctionMode):
    """Inside a trace, compute for real what no input reaches.

    Towers cut packed patches up by grids, in Python; where the grid is a constant, so is everything made of it.
    """

    def __init__(self, factories: bool) -> None:
        super().__init__()
        self.factories = FACTORIES if factories else ()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if all(type(x) is Tensor for x in tensors) and (tensors or func in self.factories):
            with for_real():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class Tower(nn.Module):
    """pixel_values -> image_features [N, D], DeepStack features [N, D] where the family has them, and salience [N] where wanted."""

    def __init__(self, model: Any, constants: dict[str, Tensor], with_salience: bool = False) -> None:
        super().__init__()
        self.watched = [vision_tower(model)] if with_salience else []  # in a list: a module stands in one place only
        inner = getattr(model, "model", model)
        self.inner = inner if hasattr(inner, "get_image_features") else model
        self.constants = [constants]  # in a list: neither parameter nor buffer, so that a trace sees the numbers

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        if not self.watched:
            return self._features(pixel_values)
        with noting(self.watched[0], self.constants[0].get(GRID)) as noted:
            features, *more = self._features(pixel_values)
        return features, salience(noted, len(features)), *more

    def _features(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        if hasattr(self.inner, "connector") and hasattr(self.inner, "vision_model"):
            return (self._tiles(pixel_values),)
        out = self.inner.get_image_features(pixel_values, **self.constants[0], return_dict=True)
        more = getattr(out, "deepstack_features", None) or ()
        return flat(getattr(out, "pooler_output", out)), *map(flat, more)

    def _tiles(self, pixel_values: Tensor) -> Tensor:
        """Idefics3 and SmolVLM drop all-zero tiles, by data. Here every tile counts, and so must each of the bucket."""
        tiles, size = pixel_values.flatten(0, 1), self.inner.config.vision_config.patch_size
        given = self.constants[0].get("pixel_attention_mask")
        seen = torch.ones(len(tiles), *tiles.shape[2:], dtype=torch.bool) if given is None else given.flatten(0, 1).bool()
        patches = seen.unfold(1, size, size).unfold(2, size, size).sum((-1, -2)) > 0
        hidden = self.inner.vision_model(pixel_values=tiles, patch_attention_mask=patches, return_dict=True).last_hidden_state
        return flat(self.inner.connector(hidden))


class Vision(nn.Module):
    """A tower with its outputs by name."""

    def __init__(self, body: nn.Module, with_salience: bool) -> None:
        super().__init__()
        self.body, self.with_salience = body, with_salience

    def forward(self, pixel_values: Tensor, **more_inputs: Tensor) -> dict[str, Tensor]:
        features, *more = self.body(pixel_values, **more_inputs)
        found = {"image_salience": more.pop(0)} if self.with_salience else {}
        return {"image_features": features} | found | {f"deepstack_features_{i}": x for i, x in enumerate(more)}


def fixed_stage(model: Any, pictures: dict[str, Tensor], with_salience: bool = False) -> Vision:
    """Trace the tower for pictures of these sizes; all arguments but the pixels are constants of the bucket.

    `with_salience` is for cuts with that score: what the tower attends to is another output.

    Raises CaptureError where the tower cannot be traced.
    """
    pixels = pictures["pixel_values"]
    tower = Tower(model, {k: v for k, v in pictures.items() if k != "pixel_values"}, with_salience).eval()
    failed: Exception | None = None
    for factories in (True, False):
        try:
            with torch.no_grad(), Fold(factories), muted("stderr"):
                exported = torch.export.export(tower, (pixels,), strict=False)
            return Vision(exported.module(check_guards=False), with_salience)
        except Exception as error:
            failed = error
    message = f"the vision tower of {type(model).__name__} could not be traced for these pictures: {str(failed)[:1000]}"
    raise CaptureError(message) from failed


def flat(features: Any) -> Tensor:
    """Features of all pictures as one [N, D]."""
    if isinstance(features, list | tuple):
        return torch.cat([flat(f) for f in features])
    return features.reshape(-1, features.shape[-1])
