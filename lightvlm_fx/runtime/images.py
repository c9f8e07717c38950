"""`get_image_features` of a compiled model: the vision tower and the projector as one compiled graph for pictures of every size.

The stage is the one that artifacts hold (exporters/towers.py). Where a tower is not known to take pictures of every size, or is asked for
more than features, the model's own code runs, and the report says why.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightvlm_fx.compat import pytree, tracing
from lightvlm_fx.errors import InputError
from lightvlm_fx.exporters.torch_compile import Compiled, freeze, lower
from lightvlm_fx.exporters.towers import VIDEO, VisionStage, any_size, feed, not_cut
from lightvlm_fx.exporters.vision import flat
from lightvlm_fx.graph.program import Facts, Program
from lightvlm_fx.model.capture import unlifted
from lightvlm_fx.model.families.patch_order import GRID
from lightvlm_fx.passes.drop_export_checks import DropExportChecks
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.passing.report import BucketReport, Report
from lightvlm_fx.releases import releases_first
from lightvlm_fx.runtime.follow import fingerprint
from lightvlm_fx.schedule import Schedule

DEEPSTACK = "deepstack_features"
SAID = {"last_hidden_state", "hidden_states", "attentions", "pooler_output", DEEPSTACK}  # in an output; a decoder is given the last two


@dataclass
class TowerGraph:
    """A compiled vision stage.

    `kind`: the class of what the model's own code gives; `own`: its features, without numbers, in the order of the stage's outputs;
    `tile`: how many tokens a tile has that was cut inside.
    """

    how: dict[str, Any]
    program: Program
    run: Compiled
    bucket: BucketReport
    kind: type
    own: tuple[Any, ...]
    tile: int | None

    def __call__(self, pictures: dict[str, Tensor], tell: Callable[[Tensor | None, int | None], None]) -> Any:
        """The output of get_image_features; `tell` is told the tokens' scores by the tower, or which of them cuts in it left."""
        given, tokens = feed(self.how, pictures)
        inputs = [given[name] for name in self.program.inputs]
        start = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            named = dict(zip(self.program.facts.outputs, self.run(*inputs), strict=True))
        self.bucket.first_s = self.bucket.first_s or time.perf_counter() - start
        tell(named.pop("image_salience", None), self.tile)
        first, *more = (self._shaped(x[:tokens], pictures, like) for x, like in zip(named.values(), self.own, strict=True))
        out = self.kind()
        for name, x in (("pooler_output", first), (DEEPSTACK, more or None)):
            if x is not None:  # set, not given: Idefics3 of transformers 5.17 has a class without such a field
                setattr(out, name, x)
        return out

    def _shaped(self, features: Tensor, pictures: dict[str, Tensor], like: Any) -> Any:
        """Features [N, D] in the form `like`, which the model's own code gives them."""
        if isinstance(like, Tensor):
            return features.view(-1, *like.shape[1:])
        return type(like)(features.split(self._of_each(pictures)))

    def _of_each(self, pictures: dict[str, Tensor]) -> list[int]:
        """Visual tokens of each picture, or of each row's tiles."""
        if self.how["kind"] == "patches":
            return [int(n) // self.how["merge"] ** 2 for n in pictures[self.how["grid"]].prod(1)]
        count = len(pictures["pixel_values"])
        return [feed(self.how, {name: x[i : i + 1] for name, x in pictures.items()})[1] for i in range(count)]


class ImageFeatures:
    """Stands in for `get_image_features` of one compiled model; `own` is what runs where no stage can.

    Raises NotSupported for cuts in a tower that cannot have them.
    """

    def __init__(self, model: nn.Module, path: str, own: Callable[..., Any], report: Report, schedule: Schedule,
                 tell: Callable[[Tensor | None, int | None], None], *,
                 backend: str, options: dict[str, Any], static: bool) -> None:  # fmt: skip
        self.model, self.path, self.report, self.schedule, self.tell = model, path, report, schedule, tell
        self.own = own
        self.backend, self.options, self.static, self.frozen = backend, options, static, False
        self.__signature__ = inspect.signature(self.own)  # generate() goes by its names
        self.stages: dict[Any, TowerGraph | None] = {}
        self.taken: Any = ()

    def freeze(self, frozen: bool) -> None:
        """Compile nothing any more, or again."""
        self.frozen = frozen
        freeze((stage.run for stage in list(self.stages.values()) if stage), frozen)  # other threads may add some

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pictures, others = self._pictures(args, kwargs)
        why = self._other_call(pictures, others)
        if why and self.schedule.leaves_in_tower:
            raise not_cut(self.schedule, [why])
        if why:
            self._say_uncompiled([why])
        stage = None if why else self._stage(pictures)
        return stage(pictures, self.tell) if stage else self.own(*args, **kwargs)

    def _other_call(self, pictures: dict[str, Tensor], others: dict[str, Any]) -> str | None:
        """Why a call is none that a graph answers."""
        if "pixel_values" not in pictures:
            return "get_image_features() was called without pixels"
        if GRID in pictures and bool((pictures[GRID][:, 0] > 1).any()):  # where get_video_features() asks this (Qwen3-VL)
            return VIDEO
        if others:
            return f"get_image_features() was called with {', '.join(f'{name}={x!r}' for name, x in others.items())}"
        if torch.is_autocast_enabled(pictures["pixel_values"].device.type):
            return "get_image_features() was called under autocast"
        return None

    def of_videos(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """`own`, get_video_features, as it is; when it runs, the report says so."""

        @functools.wraps(own)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._say_uncompiled([VIDEO])
            return own(*args, **kwargs)

        return run

    def _say_uncompiled(self, why: list[str]) -> None:
        said = f"vision: the model's own code runs, uncompiled ({'; '.join(why)})"
        self.report.warnings += [said] * (said not in self.report.warnings)

    def _pictures(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a call, and what else it asks for.

        That is not what the config says, which LLaVA-NeXT of transformers 5.17 repeats, nor `use_cache`, which Qwen3-VL's hands on.
        """
        bound = dict(self.__signature__.bind(*args, **kwargs).arguments)
        given = bound | bound.pop("kwargs", {})
        tensors = {name: x for name, x in given.items() if isinstance(x, Tensor)}
        others = {name: x for name, x in given.items() if x is not None and x is not False and name not in (*tensors, "use_cache")}
        said = {name: getattr(self.model.config, name, None) for name in others} | {"return_dict": True}
        return tensors, {name: x for name, x in others.items() if said[name] != x}

    @releases_first()
    def _stage(self, pictures: dict[str, Tensor]) -> TowerGraph | None:
        now = self._now()
        pixels = pictures["pixel_values"]
        sizes = tuple(tuple(x.shape) for x in pictures.values()) if self.static else ()
        key = (tuple(pictures), pixels.ndim, pixels.shape[-3:][pixels.ndim < 4 :], pixels.dtype, pixels.device, sizes)
        if now == self.taken and key in self.stages:
            return self.stages[key]
        with tracing():
            if now != self.taken:
                self.stages, self.taken = {}, now
            if key not in self.stages:
                if self.frozen:
                    raise InputError(
                        "pictures of this form were not warmed up, and compiling is frozen; call fast.lightvlm.warm_up(inputs) with such "
                        "a batch before freezing, or fast.lightvlm.thaw()"
                    )
                self.stages[key] = self._made(pictures)
                self.taken = self._now()  # the model's own code, asked for the first time, adds hooks of transformers
            return self.stages[key]

    def _now(self) -> tuple[Any, ...]:
        """The fingerprint of what makes features: everything beside the decoder."""
        inner, decoder = self.model.get_submodule(self.path), self.model.get_decoder()
        return tuple(fingerprint(child) for child in inner.children() if child is not decoder)

    def _made(self, pictures: dict[str, Tensor]) -> TowerGraph | None:
        with torch.no_grad():
            like = self.own(**pictures, return_dict=True)
        begun = time.perf_counter()
        found: VisionStage | list[str] = any_size(self.model, pictures, self.schedule, expected=flat(like.pooler_output))
        more = {name for name, x in like.items() if x is not None} - SAID
        if isinstance(found, VisionStage) and more:
            found = [f"its output also holds {', '.join(sorted(more))}"]
        if not isinstance(found, VisionStage) and self.schedule.leaves_in_tower:
            raise not_cut(self.schedule, found)
        if not isinstance(found, VisionStage):
            self._say_uncompiled(found)
            return None
        assert found.traced is not None
        names, captured = tuple(found.inputs), time.perf_counter() - begun
        facts = Facts(layers=0, hidden=flat(like.pooler_output).shape[-1], outputs=tuple(pytree.tree_unflatten(
            list(found.traced.graph_signature.user_outputs), found.traced.call_spec.out_spec)))  # fmt: skip
        program, steps = Pipeline([DropExportChecks()]).run(Program(unlifted(found.traced, names), "vision", facts, names))
        bucket = BucketReport("vision", 1, "any pictures", False, False, captured, 0.0, tuple(steps))
        self.report.vision.append(bucket)
        features = (like.pooler_output, *(getattr(like, DEEPSTACK, None) or ()))
        own = pytree.tree_map_only(Tensor, lambda x: x.to("meta"), features)
        tile = found.how.get("tokens") if self.schedule.leaves_in_tower else None
        return TowerGraph(found.how, program, lower(program, self.backend, self.options, self.static), bucket, type(like), own, tile)
