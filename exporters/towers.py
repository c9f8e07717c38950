"""Vision stages for pictures of every size: a model's own tower, fed with what artifact/pictures.py works out from their sizes.

Number of tiles or of patches symbolic, or for static targets as many as the bucket holds, where what is left over is masked or never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightvlm_fx.artifact.pictures import prepare
from lightvlm_fx.compat import own_configs
from lightvlm_fx.errors import NotSupported, ScheduleError
from lightvlm_fx.exporters.onnx_graph import ANY, dimensions
from lightvlm_fx.exporters.smaller import Smaller, check_smaller
from lightvlm_fx.exporters.tower_cuts import Cutting, NotCut
from lightvlm_fx.exporters.tower_forms import AnyRes, Patches, Tiles
from lightvlm_fx.exporters.vision import Vision, fixed_stage, flat
from lightvlm_fx.model.families.patch_order import GRID
from lightvlm_fx.model.locate import used_blocks, vision_tower
from lightvlm_fx.ops.bodies import InAten
from lightvlm_fx.quiet import muted
from lightvlm_fx.schedule import Schedule

SIZES = "image_sizes"
MASKS = ("pixel_attention_mask",)  # of real pixels, of towers whose tiles are padded
VIDEO = "a tower's graph is made for pictures, and this is a video"  # why one is not compiled, nor cut inside
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # on features, of the largest


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
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Between what symbolic sizes lie."""
        return {"tokens": (self.how.get("least", ANY[0]), ANY[1])}

    @property
    def unit(self) -> int:
        """A picture's visual tokens are a multiple of this."""
        return int(self.how.get("tokens", 1))


# --- which of them a model takes ------------------------------------------------------------------------


def _as_tiles(model: Any, pictures: dict[str, Tensor], tokens: int, static: bool) -> dict[str, Any]:
    others, pixels = set(pictures) - {"pixel_values", *MASKS}, pictures["pixel_values"]
    if "high_res_pixel_values" in others:  # DeepSeek-VL's hybrid
        raise NotAnySize("the model has two towers, of pixel_values and of high_res_pixel_values, and joins what they make by channel, so "
                         "that a token of one is nothing without that of the other")  # fmt: skip
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


def vision_stage(model: Any, pictures: dict[str, Tensor], schedule: Schedule, most: int, static: bool) -> VisionStage:
    """The stage for a bucket of at most `most` visual tokens, all rows together; `pictures` are those of its example.

    With `static`, for a target that takes no symbolic size. What the tower attends to is another output where a cut of the schedule
    reads that; where it cuts inside the tower, what is left is. A tower that is not known to take pictures of other sizes, or then
    gives other features than the model itself, is exported for the example's sizes alone; `how["why"]` says why.

    Raises CaptureError where the tower cannot be traced, NotSupported where the schedule's cuts inside it cannot be.
    """
    found = any_size(model, pictures, schedule, most, static)
    if isinstance(found, VisionStage):
        return found
    if schedule.leaves_in_tower:
        raise not_cut(schedule, found)
    given = {"pixel_values": pictures["pixel_values"]}
    return VisionStage(fixed_stage(model, pictures, schedule.watches_tower), {"kind": "fixed", "why": found}, given, {})


def any_size(model: Any, pictures: dict[str, Tensor], schedule: Schedule, most: int = 0, static: bool = False,
             expected: Tensor | None = None) -> VisionStage | list[str]:  # fmt: skip
    """`vision_stage` for pictures of every size, or why there is none. `expected`: what the model's own code makes of `pictures` [N, D]."""
    model = own_configs(model)  # others do not see what is switched on in it or hooked to it, nor fake weights while it is traced
    reasons, with_salience = [], schedule.watches_tower
    expected = features_of(model, pictures) if expected is None else expected
    for kind, (describe, module) in KINDS.items():
        try:
            how = describe(model, pictures, len(expected), static) | {"most": 0}
            if with_salience and kind != "tiles":
                raise NotAnySize("a score by tower attention knows the tower's patches for one picture size only")
            if static:
                needed = {"tiles": most // how.get("tokens", 1), "patches": most * how.get("merge", 1) ** 2}
                how |= {"most": needed.get(kind) or len(feed(how | {"most_tokens": 0}, pictures)[0]["pixel_values"])}
            how |= {"most_tokens": most if static else 0} if kind == "anyres" else {}
            whole = Vision(module(model, how, with_salience).eval(), with_salience)
            _compare(model, whole, how, pictures, expected)
            if not schedule.leaves_in_tower:
                return _traced(whole, how, pictures, static)
            if schedule.downsample is not None:
                smaller = Vision(Smaller(model, how, schedule.downsample).eval(), True)
                check_smaller(smaller, feed(how, pictures)[0])
                return _traced(smaller, how, pictures, static)
            cutting = _cutting(model, kind, how, schedule, static)
            if kind == "patches":
                cuts = tuple(cutting.cuts.values())
                how |= {"left": [cut.keep for cut in cuts], "least": max(3, *(max(cut.score.fewest, cut.combine.fewest) for cut in cuts))}
            reduced = Vision(module(model, how, True, cutting).eval(), True)
            _refuse_mixing(reduced, cutting, feed(how, pictures)[0])
            return _traced(reduced, how, pictures, static)
        except ScheduleError:
            raise
        except (NotAnySize, NotCut) as error:
            reasons.append(f"not as {kind}: {error}")
        except Exception as error:  # of a tower's own code, or torch.export's: any kind there is
            reasons.append(f"not as {kind}: {type(error).__name__}: {str(error)[:900]}")
    return reasons


def not_cut(schedule: Schedule, reasons: list[str]) -> NotSupported:
    """What to tell of a schedule by which fewer tokens come out of a tower, where that cannot be."""
    what = "cuts inside the vision tower" if schedule.tower else "gives the vision tower smaller pictures"
    return NotSupported(
        f"this schedule {what}, which cannot be done here: {'; '.join(reasons)}; use a schedule that cuts "
        "before the decoder (layer=0) or between its layers"
    )


def _cutting(model: Any, kind: str, how: dict[str, Any], schedule: Schedule, static: bool) -> Cutting:
    """The schedule's cuts installed in the tower of `model`. Raises NotCut or NotAnySize where they cannot be."""
    if kind == "anyres" or how.get("mask"):
        raise NotAnySize("which patches become tokens depends on the picture's size, so that a share of a tile is none of the picture")
    if kind == "patches" and static:
        raise NotAnySize("a static target pads packed patches, which cuts would count")
    layer = getattr(model.config, "vision_feature_layer", None)
    if isinstance(layer, list | tuple):
        raise NotAnySize(f"features of several blocks ({layer}) are put together, and each would have other tokens")
    return Cutting(vision_tower(model), used_blocks(model), schedule, how["merge"] ** 2 if kind == "patches" else 0)


def _refuse_mixing(stage: Vision, cutting: Cutting, inputs: dict[str, Tensor]) -> None:
    """Raise NotCut where features of tokens that are left depend on what stands in the place of those that are not."""
    with torch.no_grad():
        ours, cutting.fill = stage(**inputs), 1.0
        theirs, cutting.fill = stage(**inputs), 0.0
    alive = ours["image_salience"] > 0
    for name in ours:
        if not torch.equal(ours[name][alive], theirs[name][alive]):
            raise NotCut("what comes after its tower makes a token of several patches, of which some are left and some are not")


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


def _compare(model: Any, stage: Vision, how: dict[str, Any], pictures: dict[str, Tensor], expected: Tensor) -> None:
    """Compare a stage with the model on the example, and on other pictures where there are some. Raises NotAnySize if they differ."""
    bound = TOLERANCE[expected.dtype]
    tries = [(pictures, expected)] + [(other, features_of(model, other)) for other in others(how, pictures)]
    for given, theirs in tries:
        inputs, tokens = feed(how, given)
        with torch.no_grad():
            ours = stage(**inputs)["image_features"][:tokens]
        if ours.shape != theirs.shape or not float((ours.float() - theirs.float()).abs().max() / theirs.abs().max()) <= bound:
            raise NotAnySize("the features are other than the model's own")


def _traced(stage: Vision, how: dict[str, Any], pictures: dict[str, Tensor], static: bool) -> VisionStage:
    """The stage with a call of it, and as a graph."""
    inputs, _ = feed(how, pictures)
    dynamic: dict[str, dict[int, str]] = {}
    if not static:
        inputs, _ = feed(how, _traced_at(how, pictures))
        dynamic = symbolic(how, inputs)
    with torch.no_grad(), InAten(), muted("stderr"):  # where torch.export prints half-traced graphs
        sizes = (dimensions(dynamic, inputs, VisionStage(stage, how, inputs, dynamic).ranges),) if dynamic else None
        later = {"prefer_deferred_runtime_asserts_over_guards": True} if sizes else {}  # what holds for every size but is not proven
        traced = torch.export.export(_Called(stage), (inputs,), dynamic_shapes=sizes, strict=False, **later)
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


def _traced_at(how: dict[str, Any], pictures: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two small pictures to trace symbolic sizes with: torch.export takes a size of one for a constant, and equal sizes for one.

    What is traced so serves one picture, too.
    """
    if how["kind"] == "patches":
        sizes = torch.tensor([[1, 4, 6], [1, 2, 4]]) * torch.tensor([1, how["merge"], how["merge"]])
        return {"pixel_values": pictures["pixel_values"].new_zeros(int(sizes.prod(1).sum()), how["width"]), how["grid"]: sizes}
    if how["kind"] == "tiles":
        pixels = pictures["pixel_values"]
        return {"pixel_values": pixels.new_ones(*[1] * (pixels.ndim - 4), 2, *how["shape"])}
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


def symbolic(how: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, dict[int, str]]:
    """Of each input of a stage, the names of its symbolic dimensions."""
    if how["kind"] == "anyres":
        return {"pixel_values": {0: "tiles"}, "feature_index": {0: "tokens"}}
    if how["kind"] == "tiles":
        return {name: {0: "tiles"} for name in inputs}
    pictures = {0: "pictures", 1: "longest"}
    axes = {"window_index": {0: "tokens"}, "picture_blocks": pictures, "window_blocks": {0: "windows"}, "picture_of_unit": {0: "tokens"}}
    for i in range(len(how.get("left", ()))):
        axes |= {f"left_{i}": {0: "pictures"}, f"left_{i}_back": {0: f"{how['merge'] ** 2}*left_{i}"}}
        axes[f"left_{i}_blocks"] = {d: "pictures" if d == 0 else f"longest_{i}" for d in pictures}
    return {name: axes.get(name, {0: f"{how['merge'] ** 2}*tokens"}) for name in inputs}
