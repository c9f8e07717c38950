"""A model under a schedule as the stages that a runtime needs, each a module from tensors to tensors with known shapes.

    vision   pixel_values -> image_features [N, D]; image_salience [N] for cuts that score by it
    embed    input_ids [B, S], image_features -> inputs_embeds [B, S, D]; visual_salience [B, S]
    prefill  input_ids, attention_mask, inputs_embeds -> logits [B, V], the cache
    decode   input_ids [B, 1], step [1], the cache -> logits [B, V], the cache
    compact  the cache -> the cache, where the schedule compacts it every so many steps

Everything that depends on the prompt (segments, positions, masks, budgets) is computed inside `prefill`, so that a
runtime only pads on the left and runs. One bucket: B rows of at most S tokens, each with no picture or with
pictures of the sizes that the bucket was made for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightvlm_fx.cache import State
from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.exporters.prompt import MaskRule, Positions, Prompt, additive
from lightvlm_fx.kv_plan import KvPlan
from lightvlm_fx.layout import Layout, Plan
from lightvlm_fx.ops.bounded_attention import shrink
from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.program import Program
from lightvlm_fx.runtime import new_state
from lightvlm_fx.schedule import Schedule

ARRAYS = ("position", "size", "score")


class StageModule(nn.Module):
    """A stage. Its inputs have dtypes of their own: caches may be half precision where scores are float32."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """None: transformers' exporter would cast all inputs to the dtype of the first."""
        return iter(())


class Head(nn.Module):
    """Logits [B, V] float32 of the last hidden state [B, D]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.projection = model.get_output_embeddings()
        text = model.config.get_text_config()
        self.cap = getattr(text, "final_logit_softcapping", None)
        self.scale = getattr(text, "logit_scale", None)
        self.divisor = getattr(text, "logits_scaling", None)

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.projection(hidden)
        if self.scale:
            logits = logits * self.scale
        if self.divisor:
            logits = logits / self.divisor
        if self.cap:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits.float()


class Embed(StageModule):
    """Token embeddings with the pictures' features in their places; DeepStack features and salience alike, zero elsewhere."""

    def __init__(self, embedding: nn.Module, prompt: Prompt) -> None:
        super().__init__()
        self.embedding, self.prompt = embedding, prompt

    def forward(self, input_ids: Tensor, image_features: Tensor, **more: Tensor) -> dict[str, Tensor]:
        visual = self.prompt.visual(input_ids)
        place = (visual.flatten().cumsum(0) - 1).clamp_min(0).view(visual.shape)
        text = self.embedding(input_ids.masked_fill(visual, 0))
        out = {"inputs_embeds": torch.where(visual.unsqueeze(-1), image_features[place].to(text.dtype), text)}
        if "image_salience" in more:
            out["visual_salience"] = torch.where(visual, more.pop("image_salience")[place], 0.0)
        for name, features in more.items():
            out[name.replace("features", "visual_embeds")] = torch.where(visual.unsqueeze(-1), features[place].to(text.dtype), 0.0)
        return out


@dataclass(frozen=True)
class Counts:
    """What each row keeps of its cache, by its length: entry [p, n] is for n real tokens, without (p = 0) or with pictures."""

    count: Tensor  # [2, S + 1, L] int64
    own: Tensor
    least: int  # tokens that a row must have: below, the schedule's protected entries do not fit

    @staticmethod
    def of(images: tuple[int, ...], length: int, schedule: Schedule, depth: int) -> Counts:
        count = torch.zeros(2, length + 1, depth, dtype=torch.int64)
        own, least = torch.zeros_like(count), 1
        for p, pictures in enumerate(((), images)):
            for real in range(max(1, sum(pictures)), length + 1):
                try:
                    layout = _only(pictures, real, length)
                    plan = KvPlan.of(layout, layout.plan(schedule), schedule, depth)
                except ScheduleError:
                    if real == length:
                        raise
                    least = max(least, real + 1)
                    continue
                count[p, real], own[p, real] = plan.count[0], plan.own[0]
        return Counts(count, own, least)


def _only(pictures: tuple[int, ...], real: int, length: int) -> Layout:
    """A row of `real` tokens that begins with its pictures, padded to `length`."""
    segment = torch.cat([torch.full((n,), number) for number, n in ((PADDING, length - real), *enumerate(pictures))])
    return Layout(torch.nn.functional.pad(segment, [0, length - len(segment)], value=TEXT)[None], (pictures,))


class Prefill(StageModule):
    """The rewritten prompt graph, what it is fed with, and the caches that it leaves."""

    def __init__(self, program: Program, prompt: Prompt, positions: Positions, rules: dict[str, MaskRule], head: nn.Module,
                 schedule: Schedule, plan: Plan, kv: KvPlan | None, depth: int, room: int) -> None:  # fmt: skip
        super().__init__()
        self.body, self.inputs, self.outputs = program.graph_module, program.inputs, program.facts.outputs
        self.like = {n.name: n.meta["val"].dtype for n in program.placeholders()}
        self.prompt, self.positions, self.rules, self.head = prompt, positions, rules, head
        self.schedule, self.plan, self.kv, self.depth, self.room = schedule, plan, kv, depth, room
        for i, budget in enumerate(plan.budgets):
            self.register_buffer(f"budget_{i}", budget, persistent=False)
        self.least = 1
        if kv:
            counts = Counts.of(prompt.images, prompt.length, schedule, depth)
            self.register_buffer("count", counts.count, persistent=False)
            self.register_buffer("own", counts.own, persistent=False)
            self.least = counts.least

    def forward(self, input_ids: Tensor, attention_mask: Tensor, inputs_embeds: Tensor, **more: Tensor) -> dict[str, Any]:
        segment = self.prompt.segment(input_ids, attention_mask)
        position_ids, following = self.positions(segment)
        given = {"inputs_embeds": inputs_embeds, "position_ids": position_ids, "visual_segment": segment, "visual_pos_masks": segment >= 0}
        given |= more  # DeepStack features, salience
        for name in self.inputs:
            if name.startswith("attention_mask"):
                rule = self.rules.get(name)
                given[name] = additive(rule.allowed(segment), self.like[name]) if rule else attention_mask.to(self.like[name])
        given |= {f"visual_budget_{i}": getattr(self, f"budget_{i}") for i in range(len(self.plan.budgets))}
        kv = self.kv
        if kv:
            with_pictures = (segment >= 0).any(1).long()
            real = (segment != PADDING).sum(1)
            kv = replace(kv, count=self.count[with_pictures, real], own=self.own[with_pictures, real])
            given["kv_count"] = kv.count
        outputs = self.body(*(given[name] for name in self.inputs))
        named = dict(zip(self.outputs, outputs, strict=True))
        state = new_state(named, segment, self.schedule, kv, self.depth, None, self.room)
        out = {"logits": self.head(named["hidden"][:, -1])}
        return out | {"present": cache_arrays(state) | {"next_position": following}}


def cache_arrays(state: State) -> dict[str, Tensor]:
    """Everything that a step reads, by name."""
    out = {}
    for i, layer in enumerate(state.layers):
        out[f"{i}.key"], out[f"{i}.value"] = layer.keys, layer.values
    for stage in state.stages:
        out |= {f"{stage.number}.{what}": x for what in ARRAYS if (x := getattr(stage, what)) is not None}
    out |= {f"shift.{i}": shift for i, shift in enumerate(state.shifts)}
    out["start"] = state.start
    return out


class Decode(StageModule):
    """One new token: `step` [1] counts those already written behind the prompt.

    The cache comes in as `past_key_values` and what was written goes out as `present`.
    """

    def __init__(self, program: Program, embedding: nn.Module, head: Head, state: State, positions: Positions, period: int) -> None:
        super().__init__()
        self.body, self.inputs = program.graph_module, program.inputs
        self.embedding, self.head, self.positions = embedding, head, positions
        self.length = state.seen  # index of the first new token
        self.used = [stage.fixed - period if period else stage.used for stage in state.stages]
        self.period = period  # steps between two compactions, behind each of which slots are used anew; 0: none
        self.state = sorted(cache_arrays(state))
        self.depth = len(state.layers)

    def forward(self, input_ids: Tensor, step: Tensor, past_key_values: dict[str, Tensor]) -> dict[str, Any]:
        held = {name: past_key_values[name].clone() for name in self.state}
        given = {"inputs_embeds": self.embedding(input_ids), "query_index": step + self.length, "start": held["start"]}
        given["position_ids"] = self.positions.step(past_key_values["next_position"], self.length - held["start"], step)
        slot = step % self.period if self.period else step
        for number, used in enumerate(self.used):
            given[f"slot_{number}"] = slot + used
            given |= {f"{what}_{number}": held[f"{number}.{what}"] for what in ARRAYS if f"{number}.{what}" in held}
        for i in range(self.depth):
            given[f"keys_{i}"], given[f"values_{i}"] = held[f"{i}.key"], held[f"{i}.value"]
        given |= {f"shift_{name.removeprefix('shift.')}": held[name] for name in held if name.startswith("shift.")}
        hidden = self.body(*(given[name] for name in self.inputs))[0]
        changed = {name: x for name, x in held.items() if name.split(".")[-1] in ("key", "value", *ARRAYS)}
        return {"logits": self.head(hidden[:, -1]), "present": changed}


class Compact(StageModule):
    """Moves the entries worth most to the front of every buffer, as the schedule's period asks for (pattern S6)."""

    def __init__(self, state: State, period: int) -> None:
        super().__init__()
        assert state.kv is not None
        self.kv, self.length = state.kv, state.seen
        self.targets = [stage.fixed - period for stage in state.stages]
        self.state = [name for name in sorted(cache_arrays(state)) if name.split(".")[-1] in ("key", "value", *ARRAYS)]

    def forward(self, step: Tensor, past_key_values: dict[str, Tensor]) -> dict[str, Any]:
        held = {name: past_key_values[name].clone() for name in self.state}
        start = past_key_values["start"]
        for i, target in enumerate(self.targets):
            arrays = [held.get(f"{i}.{what}") for what in ("key", "value", *ARRAYS)]
            position, size, score = arrays[2:]
            shrink(arrays[0], arrays[1], position, score, size, step + self.length, start, self.kv.sinks, self.kv.recent, target)
        return {"present": held}
