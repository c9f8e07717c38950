"""The decoder of a compiled model: decides per call between prefill, step and continuation, and runs graphs (runtime/graphs.py).

It stands where the model's own decoder stood and is called by the model's own code, so sampling, streamers,
stopping and pipelines stay transformers' own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import ModelOutput

from lightvlm_fx.compat import given_cache, with_cache
from lightvlm_fx.errors import InputError, NotSupported
from lightvlm_fx.exporters.towers import VIDEO, not_cut
from lightvlm_fx.graph import ports
from lightvlm_fx.graph.program import Program
from lightvlm_fx.model.capture import Call
from lightvlm_fx.model.families.side_inputs import FEATURES, MASK, make_dense
from lightvlm_fx.model.layout import Layout, Placeholders, Plan
from lightvlm_fx.model.salience import Given, Noted, salience
from lightvlm_fx.passes import pipelines
from lightvlm_fx.passing.report import BucketReport, Report
from lightvlm_fx.runtime.arguments import positions, refuse_looking_ahead, set_mask, tokens_of
from lightvlm_fx.runtime.cache import BufferLayer, State
from lightvlm_fx.runtime.graphs import Entry, Graphs
from lightvlm_fx.runtime.kv_plan import KvPlan
from lightvlm_fx.runtime.state import new_state
from lightvlm_fx.schedule import Schedule, fixed_capacity, shared_sizes

# Arguments of a decoder call that say how to answer, not what to compute.
PLUMBING = {
    "past_key_values", "cache", "use_cache", "return_dict", "cache_position", "input_ids", "logits_to_keep", "num_items_in_batch",
    "tokenizer", "assistant_tokenizer", *signature(GenerationMixin.generate).parameters,
}  # fmt: skip
REFUSED = ("output_attentions", "output_hidden_states")
SURVIVORS = ("index", "segment", "went", "size")  # outputs of a cut that a handle shows


class Seen(threading.local):
    """What the call that a thread is in showed before it came to the decoder."""

    ids: Tensor | None = None  # [B, S]
    mask: Tensor | None = None  # [B, S]

    def __init__(self) -> None:
        self.tower: dict[str, Noted | Given] = {}  # what the vision tower noted of an "image" or a "video"


@dataclass(frozen=True)
class Prefilled:
    """Where the pictures of a prompt stood, and what stayed of its tokens and entries, by the names of outputs."""

    layout: Layout | None = None
    stayed: dict[str, Tensor] = field(default_factory=dict)


class Decoder:
    """What one compiled model does with a call. `forward` replaces the source decoder's."""

    def __init__(self, source: nn.Module, schedule: Schedule, report: Report, placeholders: Placeholders, *,
                 backend: str, strict: bool, static: bool, prepack: bool, dump: str | Path | None,
                 options: dict[str, Any]) -> None:  # fmt: skip
        self.source, self.schedule, self.report, self.placeholders = source, schedule, report, placeholders
        self.graphs = Graphs(source, report, backend=backend, strict=strict, static=static, prepack=prepack, dump=dump, options=options)
        self.depth = len(source.layers)
        schedule.layers(self.depth), schedule.frozen(self.depth)  # fail now, not at the first picture
        self.effective = pipelines.effective(schedule, placeholders.planes)
        self.last = Prefilled()  # in whichever thread
        self.observe: Callable[[str, dict[str, Any]], None] | None = None  # told the arguments of every prefill and step
        self._seen = Seen()

    @contextmanager
    def recording(self, told: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
        """`told` hears what every prefill and step is given meanwhile: which of both, and the arguments by name."""
        before, self.observe = self.observe, told
        try:
            yield
        finally:
            self.observe = before

    # --- seen from the model ------------------------------------------------------------------------

    @torch.compiler.disable
    def note_ids(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the decoder's parent: keep what tells where pictures and padding are.

        Some parents hand their decoder finished 4-D masks, in which padding can no longer be told apart.
        """
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        self._seen.ids = ids if isinstance(ids, Tensor) and ids.ndim == 2 else None
        self._seen.mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def note_tower(self, kind: str, noted: Noted | Given) -> None:
        """What the vision tower attended to in pictures (`kind` "image") or videos ("video"), for cuts that read it."""
        self._seen.tower = self._seen.tower | {kind: noted}

    def note_left(self, scores: Tensor | None, tile: int | None) -> None:
        """Which visual tokens cuts inside the tower left [N], tiles having so many each; None: there are no such cuts."""
        if scores is not None:
            self.note_tower("image", Given(scores, tile))

    @torch.compiler.disable  # fast.compile() and the like go around it: what runs here is compiled already
    def forward(self, *args: Any, **kwargs: Any) -> ModelOutput:
        """Same arguments and result as the source decoder's forward; last_hidden_state is [B, K, D]."""
        if args:
            raise NotSupported("call the compiled decoder with keyword arguments, as the model does")
        cache = given_cache(kwargs)
        use_cache = kwargs.get("use_cache", cache is not None)
        kwargs = self._clean(kwargs)
        state = self._state(cache)
        with torch.inference_mode(False), torch.no_grad():  # caches can be written to wherever the next turn runs
            if state is None or state.seen == 0:
                entry, hidden, new = self._prefill(kwargs)
                if use_cache is not False or cache is not None:
                    cache = cache if cache is not None else DynamicCache()
                    cache.layers = list(new.layers)
            else:
                entry, hidden = self._extend(kwargs, state)
        return with_cache(entry.program.facts.output_class, cache, last_hidden_state=hidden)

    def _clean(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self.source.training:
            raise NotSupported("the model is in training mode; a compiled model runs inference only: call .eval() first")
        for option in REFUSED:
            if kwargs.get(option):
                raise NotSupported(f"{option}=True: the compiled graph keeps no such values; ask the source model for them")
        out = {k: v for k, v in kwargs.items() if k not in PLUMBING and k not in REFUSED and v is not None}
        if "inputs_embeds" not in out:
            out["inputs_embeds"] = self.source.get_input_embeddings()(kwargs["input_ids"])
        elif torch.is_grad_enabled() and out["inputs_embeds"].requires_grad:
            raise NotSupported(
                "a gradient is wanted, but a compiled model runs inference only; "
                "call it under torch.inference_mode() or torch.no_grad() (generate() does)"
            )
        return out

    def _state(self, cache: Any) -> State | None:
        if cache is None:
            return None
        if not isinstance(cache, Cache):
            raise InputError(f"past_key_values must be a transformers Cache, got {type(cache).__name__}")
        first = cache.layers[0] if cache.layers else None
        if isinstance(first, BufferLayer):
            if first.state.owner is not self:
                raise InputError("past_key_values was made by another compiled model or schedule; start without it")
            return first.state
        kinds = {type(layer) for layer in cache.layers} or {getattr(cache, "layer_class_to_replicate", None) or DynamicLayer}
        if getattr(cache, "offloading", False) or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            raise NotSupported(
                f"{'an offloaded' if getattr(cache, 'offloading', False) else 'a'} {type(cache).__name__} cannot be used: "
                "a compiled model brings its own buffers; leave cache_implementation unset"
            )
        if cache.get_seq_length():
            raise InputError("past_key_values holds tokens that another model wrote; start without it")
        return None

    # --- prefill ------------------------------------------------------------------------------------

    def _layout(self, embeds: Tensor, mask: Tensor | None) -> Layout:
        ids = self._seen.ids
        if ids is None:
            if self.schedule.cuts:
                raise InputError("input_ids are needed to find the visual tokens; pass input_ids instead of inputs_embeds")
            ids = torch.full(embeds.shape[:2], -1, device=embeds.device)
        return Layout.of(ids, mask, self.placeholders)

    def __deepcopy__(self, memo: dict[int, Any]) -> Decoder:
        """The same: a copied cache is still this model's."""
        return self

    def _prefill(self, kwargs: dict[str, Any]) -> tuple[Entry, Tensor, State]:
        self.graphs.follow_source()
        embeds = kwargs["inputs_embeds"]
        rows, length = embeds.shape[:2]
        kwargs["position_ids"] = positions(kwargs.get("position_ids"), self.placeholders.planes, rows, length, embeds.device)
        mask = kwargs.get("attention_mask")
        flat_mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else self._seen.mask
        layout = self._layout(embeds, flat_mask)
        if self.effective.by_grid or self.effective.reads("grid"):
            layout = layout.with_grids(kwargs["position_ids"])
        schedule, plan, kv = self._plan(layout, self.effective)
        masked = set_mask(self.source.config, kwargs, plan, flat_mask)
        make_dense(self.source, kwargs, self.placeholders.deepstack)
        program, seconds, key = self.graphs.capture(kwargs, "prefill", masked)
        if program.facts.static_length and not layout.has_images:
            schedule, plan, kv = self._plan(layout, schedule.unchecked(cuts=(), freeze=(), tower=()))
        if kv and kv.note and kv.note not in self.report.warnings:
            self.report.warnings.append(kv.note)
        given = self._given(kwargs, schedule, layout, plan, kv)
        if self.graphs.static or program.facts.static_length:
            key = (*key, *(tuple(x.shape) for x in given.values()))

        def build() -> tuple[Program, BucketReport]:
            return self.graphs.rewrite(pipelines.prefill(schedule, self.depth), program, seconds, kwargs)

        entry = self.graphs.entry(key, schedule, build, f"{rows} rows, {length} tokens, images of {layout.images} tokens")
        if ports.SALIENCE.name in entry.program.inputs:
            given[ports.SALIENCE.name] = self._salience(layout)
        if ports.GRID.name in entry.program.inputs:
            given[ports.GRID.name] = layout.places()
        if self.observe:
            self.observe("prefill", given)
        outputs = entry.run(given)
        named = dict(zip(entry.program.facts.outputs, outputs, strict=True))
        entry.bucket.watch(entry.program.facts, layout.segment, named)
        outputs.clear()  # `new_state` takes keys and values out one by one, so that no two copies of all of them ever stand
        self.last = Prefilled(layout, {k: v for k, v in named.items() if k.split(".")[0] in SURVIVORS or k == ports.KV_COUNT.name})
        hidden = named.pop("hidden")
        return entry, hidden, new_state(named, layout.segment, schedule, kv, self.depth, self)

    def _plan(self, layout: Layout, schedule: Schedule) -> tuple[Schedule, Plan, KvPlan | None]:
        plan = layout.plan(schedule)
        return schedule, plan, KvPlan.of(layout, plan, schedule, self.depth) if schedule.kv else None

    def _given(
        self, kwargs: dict[str, Any], schedule: Schedule, layout: Layout, plan: Plan, kv: KvPlan | None
    ) -> dict[str, Tensor]:
        """The inputs of a prefill graph, by name; those that are only read for their size hold nothing."""
        call = Call.of(kwargs)
        given = dict(zip(call.names, call.tensors, strict=True)) | {ports.SEGMENT.name: layout.segment}
        like = layout.segment
        for i, (budget, stay) in enumerate(zip(plan.budgets, plan.stay, strict=True)):
            given |= {ports.BUDGET.at(i): budget, ports.STAY.at(i): like.new_empty(stay)}
        if schedule.freeze:
            given[ports.STAY_TEXT.name] = like.new_empty(plan.text)
        if kv:
            given |= {ports.KV_COUNT.name: kv.count, ports.KV_MOST.name: kv.most}
            given |= {ports.KV_STAY.at(n): like.new_empty(kv.lengths[i]) for i, n in enumerate(shared_sizes(schedule, self.depth))}
        return given

    def _salience(self, layout: Layout) -> Tensor:
        """What the tower attended to, where each visual token stands: [B, S] float32."""
        if not layout.has_images:
            return torch.zeros(layout.segment.shape, dtype=torch.float32, device=layout.segment.device)
        noted, self._seen.tower = self._seen.tower, {}
        ids, visual = self._seen.ids, layout.segment >= 0
        video = torch.zeros_like(visual)
        for one in self.placeholders.videos if ids is not None else ():
            video |= visual & (ids == one)
        score = torch.zeros(visual.shape, dtype=torch.float32, device=visual.device)
        for kind, own in (("image", visual & ~video), ("video", video)):
            if bool(own.any()):
                score = torch.where(own, self._attended(kind, noted.get(kind), own, layout), score)
        return score

    def _attended(self, kind: str, noted: Noted | Given | None, visual: Tensor, layout: Layout) -> Tensor:
        """What the tower attended to [B, S] float32 at the tokens `visual` [B, S] of pictures, or of videos."""
        if noted is None and self.effective.leaves_in_tower:
            why = VIDEO if kind == "video" else "get_image_features() did not run: the prompt holds finished features"
            raise not_cut(self.effective, [why])
        if noted is None and kind == "video":
            raise NotSupported(f"{self._watching()} reads what the vision tower attends to in get_video_features(), which did not run; "
                               "pass videos as pixels, or use a cut with score 'density', which needs no tower")  # fmt: skip
        if noted is None:
            raise InputError(
                f"{self._watching()} reads what the vision tower attends to in get_image_features(), which did not run: the prompt holds "
                "a video or finished features; pass pictures as pixels, or use a cut with score 'density', which needs no tower"
            )
        others = {n for row in layout.images for n in row if isinstance(noted, Given) and n != (noted.tile or n)}
        if others:
            raise NotSupported(f"cuts inside the vision tower leave shares of tiles of {noted.tile} tokens, but pictures here have "
                               f"{sorted(others)}; use a schedule that cuts before the decoder (layer=0)")  # fmt: skip
        # with beams each row stands several times after the other, but its pictures were encoded once
        rows, ids = len(visual), self._seen.ids
        times = next((n for n in range(rows, 1, -1) if rows % n == 0 and _repeat(ids, n) and noted.fits(int(visual[::n].sum()))), 1)
        score = torch.zeros(visual[::times].shape, dtype=torch.float32, device=visual.device)
        score[visual[::times]] = salience(noted, int(visual[::times].sum()))
        return score.repeat_interleave(times, 0)

    def _watching(self) -> str:
        """The method that reads the vision tower, for messages."""
        methods = ((word, m) for cut in self.effective.cuts for word, m in (("score", cut.score), ("combine", cut.combine)))
        return next(f"{word} {method.name!r}" for word, method in methods if "tower" in method.reads)

    # --- steps --------------------------------------------------------------------------------------

    def _extend(self, kwargs: dict[str, Any], state: State) -> tuple[Entry, Tensor]:
        """New tokens after a cache: one while decoding, several when a dialogue goes on (unreduced)."""
        embeds = kwargs["inputs_embeds"]
        new = embeds.shape[1]
        here = torch.arange(state.seen, state.seen + new, device=embeds.device)
        if "position_ids" not in kwargs:
            kwargs["position_ids"] = here.expand(self.placeholders.planes, 1, -1) if self.placeholders.planes else here[None]
        mask = kwargs.pop("attention_mask", None)
        refuse_looking_ahead(mask, new)
        if isinstance(mask, dict):
            kwargs["attention_mask"] = dict.fromkeys(mask)
        flat = mask if isinstance(mask, Tensor) and mask.ndim == 2 else self._seen.mask
        if new > 1 and flat is not None and not bool(flat[:, -new:].all()):
            raise InputError(
                f"the {new} tokens that continue the dialogue hold padding; continue rows of equal length, or one row at a time"
            )
        if kwargs.get(FEATURES) is not None:
            make_dense(self.source, kwargs, 0)
        else:
            kwargs.pop(MASK, None)
        entry, hidden = None, []
        room = state.room if new > 1 else 1  # one token always fits: a step reads nothing on the host
        for first in range(0, new, room):
            entry, part = self._step(tokens_of(kwargs, first, min(new, first + room)), state)
            hidden.append(part)
        assert entry is not None
        return entry, hidden[0] if len(hidden) == 1 else torch.cat(hidden, 1)

    def _step(self, kwargs: dict[str, Any], state: State) -> tuple[Entry, Tensor]:
        """As many new tokens as the caches take at once."""
        embeds, schedule = kwargs["inputs_embeds"], state.schedule
        rows, new = embeds.shape[:2]
        kwargs["position_ids"] = positions(kwargs["position_ids"], self.placeholders.planes, rows, new, embeds.device)
        if self.observe:
            self.observe("step", kwargs)
        asking = bool(state.stores) and new > 1
        if asking:
            for store in state.stores:
                store.read_all()
        state.reserve(new)
        program, seconds, key = self.graphs.capture(kwargs, "decode", False)
        call = Call.of(kwargs)
        given = dict(zip(call.names, call.tensors, strict=True)) | state.inputs(new)
        if asking:
            given |= {ports.ASKED.at(i): store.segments() for i, store in enumerate(state.stores)}
        if self.graphs.static or program.facts.static_length:
            key = (*key, *(tuple(x.shape) for x in given.values()))

        def build() -> tuple[Program, BucketReport]:
            capacity = fixed_capacity(schedule) if new == 1 else 0  # a captured example of several tokens may be longer than it
            pipe = pipelines.decode(schedule, self.depth, several=new > 1, capacity=capacity)
            return self.graphs.rewrite(pipe, program, seconds, kwargs)

        entry = self.graphs.entry(key, schedule, build, f"{rows} rows, {new} new tokens")
        hidden, *asked = entry.run(given)
        state.advance(new)
        if asking and state.count is not None:
            for i, (store, score) in enumerate(zip(state.stores, asked, strict=True)):
                store.choose(score, state.count[:, i])
        return entry, hidden


def _repeat(ids: Tensor | None, times: int) -> bool:
    """Whether each row stands `times` times, one after the other."""
    return ids is None or ids.equal(ids[::times].repeat_interleave(times, 0))
