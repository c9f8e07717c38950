"""Vision stages for pictures of every size: a model's own tower, fed with what artifact/pictures.py works out from their sizes.

Number of tiles or of patches symbolic, or for static targets as many as the bucket holds, where what is left over is masked or never read.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface

from lightvlm_fx.artifact.pictures import prepare
from lightvlm_fx.compat import packed_attention
from lightvlm_fx.exporters.onnx_graph import dimensions
from lightvlm_fx.exporters.vision import Tower, Vision, fixed_stage, flat
from lightvlm_fx.model.families.patch_order import GRID
from lightvlm_fx.model.locate import vision_tower
from lightvlm_fx.model.salience import noting, salience
from lightvlm_fx.ops.bodies import InAten

SIZES = "image_sizes"
MASKS = ("pixel_attention_mask",)  # of real pixels, of towers whose tiles are padded
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # on features, of the largest
PACKED = "lightvlm_flash_packed"  # towers hand attention of such a name all patches at once, with what says which belong together


class NotAnySize(Exception):
    """Why a tower is not exported for pictures of every size."""


@dataclass
class VisionStage:
    """A stage, how it is fed (as the manifest says it), a call of it, and which dimensions of its inputs are symbolic."""

    module: nn.Module
    how: dict[str, Any]
    inputs: dict[str, Tensor]
    dynamic: dict[str, dict[int, str]]
    traced: torch.export.ExportedProgram | None = None  # None: of pictures of one size

    def features(self, pictures: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
        """What the stage makes of `pictures`, of the example's sizes, each output filled up with zeros to `rows` visual tokens."""
        given, tokens = (self.inputs, rows) if self.how["kind"] == "fixed" else feed(self.how, pictures)
        with torch.no_grad():
            out = self.module(**given)
        return {name: torch.cat([x[:tokens], x.new_zeros(max(0, rows - tokens), *x.shape[1:])]) for name, x in out.items()}

    @property
    def unit(self) -> int:
        """A picture's visual tokens are a multiple of this."""
        return int(self.how.get("tokens", 1))


class Whole(TorchFunctionMode):
    """Leave a tensor whole that code takes apart along a symbolic dimension (LLaVA: a list of each picture's features)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.unbind, Tensor.__len__) and isinstance(args[0].shape[0], torch.SymInt):
            return [args[0]] if func is Tensor.unbind else 1  # a list asks for the length first
        return func(*args, **(kwargs or {}))


class Tiles(nn.Module):
    """Squares [n, C, H, W] to features; `patch_mask` [n, h, w] says which patches of them hold real pixels."""

    def __init__(self, model: Any, how: dict[str, Any], with_salience: bool) -> None:
        super().__init__()
        self.tower = Tower(model, {}, with_salience)
        self.inner, self.watched = self.tower.inner, self.tower.watched

    def forward(self, pixel_values: Tensor, patch_mask: Tensor | None = None) -> tuple[Tensor, ...]:
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

    def __init__(self, model: Any, how: dict[str, Any], with_salience: bool) -> None:
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
    groups, scale = options["cu_seq_lens_q"], options.get("scaling")
    if not isinstance(groups, Blocks):
        mask = (groups[:, None] == groups)[None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2), None
    at = groups.index.clamp_min(0)
    q, k, v = (x[0].transpose(0, 1)[at].transpose(1, 2) for x in (q, k, v))  # [n, H, w, d]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=(groups.index >= 0)[:, None, None], scale=scale)
    return out.transpose(1, 2).flatten(0, 1)[groups.back].unsqueeze(0), None


AttentionInterface.register(PACKED, _attend_packed)


class Patches(nn.Module):
    """Packed patches [N, W] of pictures of any shape to features [N / merge^2, D], and DeepStack features."""

    def __init__(self, model: Any, how: dict[str, Any], with_salience: bool) -> None:
        super().__init__()
        self.visual = vision_tower(model)

    def forward(self, pixel_values: Tensor, position_ids: Tensor, **more: Tensor) -> tuple[Tensor, ...]:
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


# --- which of them a model takes ------------------------------------------------------------------------


def _as_tiles(model: Any, pictures: dict[str, Tensor], tokens: int, static: bool) -> dict[str, Any]:
    others, pixels = set(pictures) - {"pixel_values", *MASKS}, pictures["pixel_values"]
    if others:
        raise NotAnySize(f"the tower is told {', '.join(sorted(others))}, by a rule of its own")
    inner = getattr(model, "model", model)
    connected = hasattr(inner, "connector") and hasattr(inner, "vision_model")
    count = int(pixels.flatten(0, -4).flatten(1).any(1).sum()) if connected else pixels.flatten(0, -4).shape[0]
    if tokens % count:
        raise NotAnySize(f"{count} tiles make {tokens} tokens, not as many each")
    how: dict[str, Any] = {"kind": "tiles", "tokens": tokens // count, "shape": list(pixels.shape[-3:]), "drops_empty": connected}
    if connected:
        how |= {"mask": MASKS[0], "patch": model.config.vision_config.patch_size}
    return how


def _as_patches(model: Any, pictures: dict[str, Tensor], tokens: int, static: bool) -> dict[str, Any]:
    if set(pictures) != {"pixel_values", GRID}:
        raise NotAnySize(f"no grid of patches, or more than it: {', '.join(sorted(pictures))}")
    visual, vision = vision_tower(model), model.config.vision_config
    merge = vision.spatial_merge_size
    window = visual.window_size // merge // visual.patch_size if hasattr(visual, "window_size") else 0
    table = visual.num_grid_per_side if hasattr(visual, "interpolation_mode") else 0
    return {"kind": "patches", "grid": GRID, "merge": merge, "window": window, "table": table, "width": pictures["pixel_values"].shape[1]}


def _as_anyres(model: Any, pictures: dict[str, Tensor], tokens: int, static: bool) -> dict[str, Any]:
    pixels, config = pictures["pixel_values"], model.config
    known = set(pictures) == {"pixel_values", SIZES} and pixels.ndim == 5 and hasattr(config, "image_grid_pinpoints")
    if not known or hasattr(config, "vision_aspect_ratio"):
        raise NotAnySize("pictures of any resolution follow another rule than LLaVA-NeXT's")
    side = config.vision_config.image_size // config.vision_config.patch_size
    return {"kind": "anyres", "shape": list(pixels.shape[2:]), "side": side, "sizes": [list(x) for x in config.image_grid_pinpoints]}


KINDS: dict[str, tuple[Callable[..., dict[str, Any]], type[nn.Module]]] = {
    "patches": (_as_patches, Patches), "anyres": (_as_anyres, AnyRes), "tiles": (_as_tiles, Tiles),
}  # fmt: skip


def vision_stage(model: Any, pictures: dict[str, Tensor], most: int, static: bool, with_salience: bool = False) -> VisionStage:
    """The stage for a bucket of at most `most` visual tokens, all rows together; `pictures` are those of its example.

    With `static`, for a target that takes no symbolic size. `with_salience` is for cuts with that score: what the tower attends to
    is another output. A tower that is not known to take pictures of other sizes, or then gives other features than the model itself,
    is exported for the example's sizes alone; `how["why"]` says why.

    Raises CaptureError where the tower cannot be traced.
    """
    found = any_size(model, pictures, most, static, with_salience)
    if isinstance(found, VisionStage):
        return found
    given = {"pixel_values": pictures["pixel_values"]}
    return VisionStage(fixed_stage(model, pictures, with_salience), {"kind": "fixed", "why": found}, given, {})


def any_size(model: Any, pictures: dict[str, Tensor], most: int = 0, static: bool = False, with_salience: bool = False,
             single: bool = False) -> VisionStage | list[str]:  # fmt: skip
    """`vision_stage` for pictures of every size, or why there is none. With `single`, for one tile or one grid of patches at a time."""
    expected, reasons = features_of(model, pictures), []
    for kind, (describe, module) in KINDS.items():
        try:
            how = describe(model, pictures, len(expected), static) | {"most": 0}
            if with_salience and kind != "tiles":
                raise NotAnySize("a score by tower attention knows the tower's patches for one picture size only")
            if static:
                needed = {"tiles": most // how.get("tokens", 1), "patches": most * how.get("merge", 1) ** 2}
                how |= {"most": needed.get(kind) or len(feed(how | {"most_tokens": 0}, pictures)[0]["pixel_values"])}
            how |= {"most_tokens": most if static else 0} if kind == "anyres" else {}
            stage = Vision(module(model, how, with_salience).eval(), with_salience)
            return _checked(model, stage, how, pictures, expected, static, single)
        except NotAnySize as error:
            reasons.append(f"not as {kind}: {error}")
        except Exception as error:
            reasons.append(f"not as {kind}: {type(error).__name__}: {str(error)[:300]}")
    return reasons


def is_single(pictures: dict[str, Tensor]) -> bool:
    """Whether these are one tile, or one grid of patches: a kind of its own, as graphs take a size of one for a constant."""
    pixels = pictures["pixel_values"]
    return (len(pictures[GRID]) if GRID in pictures else len(pixels.flatten(0, -4)) if pixels.ndim > 3 else 0) == 1


def features_of(model: Any, pictures: dict[str, Tensor]) -> Tensor:
    """Features [N, D] of all pictures, by the model's own code."""
    inner = getattr(model, "model", model)
    inner = inner if hasattr(inner, "get_image_features") else model
    with torch.no_grad():
        out = inner.get_image_features(**pictures, return_dict=True)
    return flat(getattr(out, "pooler_output", out))


def feed(how: dict[str, Any], pictures: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The inputs of a stage on the pictures' device, and how many visual tokens it makes of them.

    Pixels stay where they are: what is worked out in NumPy is which of them go where.

    Raises InputError for pictures of another form.
    """
    pixels = pictures["pixel_values"]
    apart = pixels.flatten(0, 0 if how["kind"] == "patches" else -4)
    lead = pixels.shape[: pixels.ndim - apart.ndim + 1]
    numbers = np.arange(1, len(apart) + 1, dtype=np.int32)
    if how.get("drops_empty"):
        numbers *= apart.flatten(1).any(1).cpu().numpy()
    given = {name: x.float().cpu().numpy() if x.is_floating_point() else x.cpu().numpy() for name, x in pictures.items() if x is not pixels}
    shaped = numbers.reshape(*lead, *[1] * (pixels.ndim - len(lead)))
    made, tokens = prepare(how, given | {"pixel_values": np.broadcast_to(shaped, pixels.shape)})
    chosen = made.pop("pixel_values")
    chosen = chosen.reshape(len(chosen), -1)[:, 0]
    if not np.array_equal(chosen, np.arange(1, len(apart) + 1)):
        at = torch.from_numpy(chosen.astype(np.int64)).to(pixels.device)
        apart = torch.cat([apart.new_zeros(1, *apart.shape[1:]), apart])[at]
    more = {name: torch.from_numpy(np.ascontiguousarray(x)).to(pixels.device) for name, x in made.items()}
    return {"pixel_values": apart} | more, tokens


def _checked(model: Any, stage: Vision, how: dict[str, Any], pictures: dict[str, Tensor], expected: Tensor, static: bool,
             single: bool) -> VisionStage:  # fmt: skip
    """The stage with a call of it, after comparing it with the model on the example, and on other pictures where there are some."""
    bound = TOLERANCE[expected.dtype]
    tries = [(pictures, expected)] + [(other, features_of(model, other)) for other in others(how, pictures)]
    for given, theirs in tries:
        inputs, tokens = feed(how, given)
        with torch.no_grad():
            ours = stage(**inputs)["image_features"][:tokens]
        if ours.shape != theirs.shape or not float((ours.float() - theirs.float()).abs().max() / theirs.abs().max()) <= bound:
            raise NotAnySize("the features are other than the model's own")
    inputs, _ = feed(how, pictures)
    dynamic: dict[str, dict[int, str]] = {}
    if not static:
        inputs, _ = feed(how, _traced_at(how, pictures, 1 if single else 2))
        dynamic = symbolic(how, inputs, single)
    with torch.no_grad(), InAten(), contextlib.redirect_stderr(io.StringIO()):  # where torch.export prints half-traced graphs
        sizes = (dimensions(dynamic, inputs),) if dynamic else None
        traced = torch.export.export(_Called(stage), (inputs,), dynamic_shapes=sizes, strict=False)
    # as traced: transformers' exporter puts another attention in the place of every packed tower's
    module = _Named(traced.module(check_guards=False)) if how["kind"] == "patches" else stage
    return VisionStage(module, how, inputs, dynamic, traced)


class _Called(nn.Module):
    """A stage as a function of one dictionary, of which torch.export takes sizes by name."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.stage(**given)


class _Named(nn.Module):
    """The traced form of `_Called`, called with its inputs by name."""

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        return self.traced(given)


def _traced_at(how: dict[str, Any], pictures: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """A few small pictures to trace symbolic sizes with: torch.export takes a size of one for a constant, and equal sizes for one."""
    if how["kind"] == "patches":
        sizes = torch.tensor([[1, 4, 6], [1, 2, 4]])[:count] * torch.tensor([1, how["merge"], how["merge"]])
        return {"pixel_values": pictures["pixel_values"].new_zeros(int(sizes.prod(1).sum()), how["width"]), how["grid"]: sizes}
    if how["kind"] == "tiles":
        pixels = pictures["pixel_values"]
        return {"pixel_values": pixels.new_ones(*[1] * (pixels.ndim - 4), count, *how["shape"])}
    return {name: torch.cat([x[:1]] * 2) for name, x in pictures.items()}


def others(how: dict[str, Any], pictures: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Pictures of other sizes, made from these, that the model itself takes too."""
    pixels = pictures["pixel_values"]
    if how["kind"] == "tiles" and pixels.ndim == 4 and len(pixels) > 1:
        return [{name: x[:1] for name, x in pictures.items()}]
    if how["kind"] == "patches":
        turned = pictures[how["grid"]][:, [0, 2, 1]]
        return [] if torch.equal(turned, pictures[how["grid"]]) else [pictures | {how["grid"]: turned}]
    return []


def symbolic(how: dict[str, Any], inputs: dict[str, Tensor], single: bool) -> dict[str, dict[int, str]]:
    """Of each input of a stage, the names of its symbolic dimensions."""
    if how["kind"] == "anyres":
        return {"pixel_values": {0: "tiles"}, "feature_index": {0: "tokens"}}
    if how["kind"] == "tiles":
        return {} if single else {name: {0: "tiles"} for name in inputs}
    pictures = {1: "longest"} if single else {0: "pictures", 1: "longest"}
    axes = {"window_index": {0: "tokens"}, "picture_blocks": pictures, "window_blocks": {0: "windows"}}
    return {name: axes.get(name, {0: f"{how['merge'] ** 2}*tokens"}) for name in inputs}
