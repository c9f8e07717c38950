"""`lightvlm.compile`: a model of the same class whose decoder runs rewritten graphs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from lightvlm_fx.compat import given_cache
from lightvlm_fx.errors import InputError, NotSupported
from lightvlm_fx.explanation import Explanation, explain
from lightvlm_fx.exporters.torch_compile import check_backend, check_prepack
from lightvlm_fx.exporters.towers import not_cut
from lightvlm_fx.graph.ports import KV_COUNT
from lightvlm_fx.graph.pretty import text
from lightvlm_fx.graph.program import Program, Stage
from lightvlm_fx.methods.budgets.weights import Weights
from lightvlm_fx.model.incoming import by_name, expect_finite, misfit
from lightvlm_fx.model.layout import Placeholders
from lightvlm_fx.model.locate import along, check_supported, decoder_path, vision_tower
from lightvlm_fx.model.salience import watched
from lightvlm_fx.model.whole import refuse_parts
from lightvlm_fx.passing.report import Report
from lightvlm_fx.releases import warn_of_untested
from lightvlm_fx.runtime.decoder import Decoder
from lightvlm_fx.runtime.follow import follow, refuse_own_forward
from lightvlm_fx.runtime.images import ImageFeatures
from lightvlm_fx.schedule import Schedule, as_schedule

# Tensors of a call that carry no picture; any other argument of a model might, whatever it is called.
TEXT_ARGUMENTS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "cache", "cache_position",
                  "token_type_ids", "mm_token_type_ids")  # fmt: skip


class Handle:
    """`fast.lightvlm`: what a compiled model can tell and do beyond its class."""

    def __init__(self, decoder: Decoder, images: ImageFeatures | None, model: nn.Module,
                 again: Callable[[Schedule | str | Path], Any]) -> None:  # fmt: skip
        self._decoder, self._images, self._model, self._again = decoder, images, model, again

    @property
    def schedule(self) -> Schedule:
        """What the model runs."""
        return self._decoder.schedule

    @property
    def report(self) -> Report:
        """What was captured and rewritten so far: matched and expected per pass, shapes, counts."""
        return self._decoder.report

    def graph(self, stage: str = "prefill", only_pass: str | None = None) -> str:
        """Readable text of the latest rewritten graph of `stage`; `only_pass="*"` shows inserted lines only."""
        made = [*self._decoder.graphs.entries.values(), *(x for x in (self._images.stages.values() if self._images else ()) if x)]
        for entry in reversed(made):
            if entry.program.stage == stage:
                return text(entry.program, only_pass)
        raise InputError(f"no {stage} graph yet: call warm_up(inputs) or generate() first (stages: vision, prefill, decode)")

    def explain(self, inputs: Any = None) -> Explanation:
        """What the schedule does to this model, as `lightvlm.explain` says it, for a batch or for a typical prompt."""
        return explain(self._model, self.schedule, inputs)

    def warm_up(self, inputs: Any, *, new_tokens: int = 3, freeze: bool = False) -> Report:
        """Compile the buckets of a batch now. With `freeze`, a later batch that needs another is an error."""
        self.thaw()
        self._model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        if not self._decoder.graphs.entries:
            raise NotSupported("nothing was compiled: generate() did not reach the decoder; is its forward, or the model's, replaced?")
        self._freeze(freeze)
        return self.report

    def with_schedule(self, schedule: Schedule | str | Path) -> Any:
        """The source model under another schedule, compiled as this one was, over the same captured graphs.

        What `compile` of the source would give, without capturing anew what one of them captured: a capture does not
        depend on the schedule. Raises as `compile` does.
        """
        other = self._again(schedule)
        other.lightvlm._decoder.graphs.captured = self._decoder.graphs.captured
        return other

    def thaw(self) -> None:
        """Allow new buckets again."""
        self._freeze(False)

    def _freeze(self, frozen: bool) -> None:
        self._decoder.graphs.freeze(frozen)
        if self._images:
            self._images.freeze(frozen)

    def recording(self, told: Callable[[str, dict[str, Any]], None]) -> AbstractContextManager[None]:
        """While open, `told(stage, inputs)` hears what each graph is given; for exporters and checks, it may change."""
        return self._decoder.recording(told)

    @property
    def captured(self) -> dict[Stage, Program]:
        """The decoder's graphs as captured, before any pass; for exporters and checks, it may change."""
        return {program.stage: program for program, _ in self._decoder.graphs.captured.values()}

    @property
    def survivors(self) -> dict[str, Tensor]:
        """Of the latest prefill: `index.i` [B, K], `segment.i` [B, K], `went.i` [B, S] and `size.i` [B, K] of cut i."""
        return {k: v for k, v in self._decoder.last.stayed.items() if k != KV_COUNT.name}

    def frozen_schedule(self) -> Schedule:
        """The schedule with the budgets that the latest prompt led to as constants, the mean over its rows.

        For export, and for prompts like this one. Raises NotSupported where budgets do not adapt.
        """
        counts = self._decoder.last.stayed.get(KV_COUNT.name)
        if counts is None or self.schedule.kv is None:
            raise NotSupported("no budgets to freeze: they do not adapt to the prompt, nothing was dropped, or no prompt came yet")
        weights = [float(weight) for weight in counts.float().mean(0).clamp_min(1)]
        return self.schedule.model_copy(update={"kv": self.schedule.kv.model_copy(update={"budgets": Weights(weights=weights)})})

    @property
    def layout(self) -> Any:
        """Where the pictures stood in the latest prefill."""
        return self._decoder.last.layout


def compile(  # noqa: A001  (the public name; `lightvlm.compile` hides no built-in)
    model: Any,
    schedule: Schedule | str | Path,
    *,
    backend: str = "inductor",
    strict: bool = True,
    static: bool = False,
    prepack: bool = False,
    dump: str | Path | None = None,
    **torch_compile_options: Any,
) -> Any:
    """A drop-in for `model` that runs `schedule`: same class, same generate(), shared weights.

    `schedule` is a Schedule, a preset's name, or the path of a schedule file. `backend="eager"` runs the
    rewritten graphs uncompiled. One graph serves every size of picture and prompt; with `static`, every size of a
    batch gets a graph of its own, as CUDA graphs need it. With `prepack`, on a processor, linear layers of the decoder read copies of
    their weights in the layout that oneDNN wants: prompts are faster, above all in bfloat16, for as much memory again. `dump` keeps
    the text of every graph, before and after each pass.
    Capture is lazy, at the first batch of each kind, or ahead of time by `fast.lightvlm.warm_up(inputs)`.

    Raises RefusedModel for an architecture out of reach, ScheduleError for a schedule that does not fit,
    UnknownName for a preset or backend that does not exist, NotSupported for `prepack` where nothing can be packed.
    """
    said = warn_of_untested()
    schedule = as_schedule(schedule)
    check_backend(backend)
    if hasattr(model, "lightvlm"):
        raise NotSupported("this model is compiled already; for another schedule call its .lightvlm.with_schedule(schedule)")
    check_supported(model)
    report = Report(type(model).__name__, schedule.name, schedule.fingerprint, backend)
    report.warnings += said
    path = decoder_path(model)
    refuse_parts(model, path)
    if prepack:
        check_prepack(model.get_submodule(path), backend, static, torch_compile_options)
        linear = [module.weight for module in model.get_submodule(path).modules() if isinstance(module, nn.Linear)]
        more = sum(x.numel() * x.element_size() for x in linear) / 2**20
        report.warnings.append(f"prepack: copies of weights take up to {more:.1f} MiB more")
    refuse_own_forward(model, path)
    fast = along(model, path)
    source = model.get_submodule(path)
    decoder = Decoder(source, schedule, report, Placeholders.of(model), backend=backend, strict=strict, static=static,
                      prepack=prepack, dump=dump, options=torch_compile_options)  # fmt: skip
    above = path.rpartition(".")[0]
    parent, images = fast.get_submodule(above), None
    inside, own = decoder.effective.leaves_in_tower, getattr(parent, "get_image_features", None)
    if schedule.watches_tower:
        for kind in ("image", "video") if hasattr(type(parent), "get_video_features") else ("image",):
            seen = watched(vision_tower(model), parent, partial(decoder.note_tower, kind), kind)
            object.__setattr__(parent, f"get_{kind}_features", seen)
        own = parent.get_image_features
    if inside and own is None:
        raise not_cut(schedule, ["it has no get_image_features() beside its decoder"])
    if (backend != "eager" or inside) and own is not None:  # eager, the same code would run
        images = ImageFeatures(model, above, own, report, decoder.effective, decoder.note_left, backend=backend,
                               options=torch_compile_options, static=static)  # fmt: skip
        object.__setattr__(parent, "get_image_features", images)
        if hasattr(type(parent), "get_video_features"):
            object.__setattr__(parent, "get_video_features", images.of_videos(parent.get_video_features))
    stand_in = fast.get_submodule(path)
    object.__setattr__(stand_in, "forward", decoder.forward)
    parent.register_forward_pre_hook(decoder.note_ids, with_kwargs=True)
    fast.register_forward_pre_hook(lambda module, args: follow(model, fast, path))
    fast.register_forward_pre_hook(_refuse_labels, with_kwargs=True)
    fast.register_forward_pre_hook(partial(_expect_pictures, decoder.placeholders.ids), with_kwargs=True)
    object.__setattr__(fast, "forward", _telling_counts(fast))
    object.__setattr__(fast, "train", partial(_refuse_training, fast))
    object.__setattr__(fast, "generate", _whole_prompts(fast))
    fast.generation_config = copy.deepcopy(model.generation_config)
    again = partial(compile, model, backend=backend, strict=strict, static=static, prepack=prepack, dump=dump, **torch_compile_options)
    object.__setattr__(fast, "__deepcopy__", lambda memo: _copy(fast, model, again.keywords, memo))
    object.__setattr__(fast, "__reduce_ex__", _refuse_pickling)
    object.__setattr__(fast, "lightvlm", Handle(decoder, images, fast, again))
    return fast


def _copy(fast: Any, model: Any, options: dict[str, Any], memo: dict[int, Any]) -> Any:
    """A deep copy: the source's, compiled as `fast` is."""
    return compile(copy.deepcopy(model, memo), fast.lightvlm.schedule, **options)


def _refuse_pickling(protocol: Any) -> Any:
    raise NotSupported(
        "a compiled model cannot be pickled: its graphs belong to this process; save the source with model.save_pretrained(folder) and "
        "compile it after loading, or write an artifact with lightvlm_fx.export"
    )


def _refuse_labels(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("labels") is not None:
        raise NotSupported("labels ask for a training loss, but a compiled model runs inference only; train the source model")


@torch.compiler.disable
def _expect_pictures(placeholders: tuple[int, ...], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A first prompt with placeholders and no picture would be answered by transformers, from their embeddings."""
    kwargs = by_name(module, args, kwargs)
    ids, cache = kwargs.get("input_ids"), given_cache(kwargs)
    expect_finite({k: v for k, v in kwargs.items() if k not in TEXT_ARGUMENTS})
    if not isinstance(ids, Tensor) or (isinstance(cache, Cache) and cache.get_seq_length()):
        return
    others = [v for k, v in kwargs.items() if k not in TEXT_ARGUMENTS]
    given = any(isinstance(v, Tensor | list | tuple | dict) and len(v) for v in others)
    count = int(torch.isin(ids, torch.tensor(placeholders, device=ids.device)).sum())
    if count and not given:
        raise InputError(
            f"the prompt holds {count} placeholder tokens for pictures, but no picture came with it; "
            "pass everything that the processor returned, as in generate(**inputs)"
        )


def _whole_prompts(fast: nn.Module) -> Callable[..., Any]:
    """`fast.generate`, which refuses to bring a prompt in pieces: cuts and bounds choose from all of it, and would see the first only."""
    generate: Callable[..., Any] = fast.generate  # type: ignore[assignment]

    @functools.wraps(generate)
    def whole(*args: Any, **kwargs: Any) -> Any:
        configs = [kwargs.get("generation_config"), *args[1:2], fast.generation_config]
        config = next(config for config in configs if config is not None)
        size = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        if size is not None:
            raise NotSupported(
                f"prefill_chunk_size={size} brings the prompt in pieces, but a compiled model chooses from the whole prompt what stays; "
                "leave prefill_chunk_size unset"
            )
        return generate(*args, **kwargs)

    return whole


def _telling_counts(fast: nn.Module) -> Callable[..., Any]:
    """`fast.forward`, with transformers' error for a wrong count of pictures put in words that say what to do."""
    forward = fast.forward

    @functools.wraps(forward)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except ValueError as error:
            if "features and image tokens do not match" not in str(error) or isinstance(error, InputError):
                raise
            cache = given_cache(by_name(fast, args, kwargs))
            raise misfit(error, isinstance(cache, Cache) and cache.get_seq_length() > 0) from error

    return told


def _refuse_training(fast: nn.Module, mode: bool = True) -> nn.Module:
    """`train` of a compiled model: its modules are the source's, which must not leave eval mode unnoticed."""
    if mode:
        raise NotSupported("a compiled model runs inference only: train the source model, and call .eval() on it before the next answer")
    return fast
