"""A model under a schedule as the stages that a runtime needs, each a module from tensors to tensors with known shapes.

    vision   pictures -> image_features [N, D]; image_salience [N] for cuts that score by it
    embed    input_ids [B, S], image_features -> inputs_embeds [B, S, D]; visual_salience [B, S]
    prefill  input_ids, attention_mask, picture_tokens [B, I], inputs_embeds -> logits [B, V], the cache
    decode   input_ids [B, 1], step [1], the cache -> logits [B, V], the cache
    compact  the cache -> the cache, where the schedule compacts it every so many steps

Everything that depends on the prompt (segments, positions, masks, budgets) is computed inside `prefill`, from how many visual tokens
each picture has, so that a runtime only pads on the left and runs. One bucket: B rows of at most S tokens, within `Bounds`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightvlm_fx.exporters.prompt import MaskRule, Positions, Prompt, additive
from lightvlm_fx.exporting.bounds import Tables
from lightvlm_fx.graph import ports
from lightvlm_fx.graph.program import Program
from lightvlm_fx.ops.bounded_attention import shrink
from lightvlm_fx.ops.segments import PADDING
from lightvlm_fx.runtime.cache import State
from lightvlm_fx.runtime.state import new_state
from lightvlm_fx.schedule import Schedule, shared_sizes

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


class EmbedStage(StageModule):
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
            out[ports.SALIENCE.name] = torch.where(visual, more.pop("image_salience")[place], 0.0)
        for name, features in more.items():
            out[name.replace("features", "visual_embeds")] = torch.where(visual.unsqueeze(-1), features[place].to(text.dtype), 0.0)
        return out


class PrefillStage(StageModule):
    """The rewritten prompt graph, what it is fed with, and the caches that it leaves. One for every batch within the bucket's bounds.

    With `any_length`, for prompts of any length up to the bucket's: then `stay_i` and `kv_stay_n` are inputs, whose sizes are all that is
    read of them, and the caches say how long the prompt was.
    """

    def __init__(self, program: Program, prompt: Prompt, positions: Positions, rules: dict[str, MaskRule], head: nn.Module,
                 schedule: Schedule, tables: Tables, depth: int, room: int, any_length: bool) -> None:  # fmt: skip
        super().__init__()
        self.body, self.inputs, self.outputs = program.graph_module, program.inputs, program.facts.outputs
        self.like = {n.name: n.meta["val"].dtype for n in program.placeholders()}
        self.prompt, self.positions, self.rules, self.head = prompt, positions, rules, head
        self.schedule, self.tables, self.depth, self.room, self.any_length = schedule, tables, depth, room, any_length
        for i, kept in enumerate(tables.kept):  # a buffer a cut: torch.export saves no table of no rows
            self.register_buffer(f"kept_{i}", kept, persistent=False)
        self.register_buffer("wanted", tables.wanted, persistent=False)

    def forward(self, **given: Tensor) -> dict[str, Any]:
        return self.answer(**given)[0]

    def answer(self, input_ids: Tensor, attention_mask: Tensor, picture_tokens: Tensor, inputs_embeds: Tensor,
               picture_grids: Tensor | None = None, **more: Tensor) -> tuple[dict[str, Any], State]:  # fmt: skip
        """What the stage gives out, and the caches as the compiled model would hold them."""
        segment = self.prompt.segment(input_ids, attention_mask, picture_tokens)
        position_ids, following = self.positions(segment, picture_tokens, picture_grids)
        given = {"inputs_embeds": inputs_embeds, "position_ids": position_ids, ports.SEGMENT.name: segment}
        given |= {"visual_pos_masks": segment >= 0} | more  # DeepStack features, salience
        for name in self.inputs:
            if name.startswith("attention_mask"):
                rule = self.rules.get(name)
                given[name] = additive(rule.allowed(segment), self.like[name]) if rule else attention_mask.to(self.like[name])
        budgets = [getattr(self, f"kept_{i}")[picture_tokens] for i in range(len(self.tables.stay))]
        for i, (budget, stay) in enumerate(zip(budgets, self.tables.stay, strict=True)):
            given[ports.BUDGET.at(i)] = budget
            given.setdefault(ports.STAY.at(i), segment.new_empty(stay))
        if ports.GRID.name in self.inputs:
            given[ports.GRID.name] = self.prompt.places(segment, picture_tokens, picture_grids)
        given.setdefault(ports.STAY_TEXT.name, segment.new_empty(self.tables.text))
        kv = None
        if self.wanted is not None:
            visual = picture_tokens.sum(1)
            kv = self.tables.plan(self.schedule, self.wanted, visual, (segment != PADDING).sum(1) - visual, budgets)
            given |= {ports.KV_COUNT.name: kv.count, ports.KV_MOST.name: kv.most}
            for layer, number in enumerate(shared_sizes(self.schedule, self.depth)):
                given.setdefault(ports.KV_STAY.at(number), segment.new_empty(self.tables.entries[layer]))
        outputs = self.body(*(given[name] for name in self.inputs))
        named = dict(zip(self.outputs, outputs, strict=True))
        state = new_state(named, segment, self.schedule, kv, self.depth, None, self.room)
        out = {"logits": self.head(named["hidden"][:, -1])}
        length = {"length": torch.ones_like(segment[0]).sum(0, keepdim=True)} if self.any_length else {}
        return out | {"present": cache_arrays(state) | length | {"next_position": following}}, state


def cache_arrays(state: State) -> dict[str, Tensor]:
    """Everything that a step reads, by name."""
    out = {}
    for i, layer in enumerate(state.layers):
        out[f"{i}.key"], out[f"{i}.value"] = layer.keys, layer.values
    for table in state.tables:
        out |= {f"{table.number}.{what}": x for what in ARRAYS if (x := getattr(table, what)) is not None}
    out |= {f"shift.{i}": shift for i, shift in enumerate(state.shifts)}
    out["start"] = state.start
    if state.limit is not None and state.kv is not None and state.kv.when.masks:
        out["limit"] = state.limit
    return out


class DecodeStage(StageModule):
    """One new token: `step` [1] counts those already written after the prompt.

    The cache comes in as `past_key_values` and what was written goes out as `present`. Buffers with `room` for new tokens have so many
    slots more than the prompt left entries.
    """

    def __init__(self, program: Program, embedding: nn.Module, head: Head, state: State, positions: Positions, period: int,
                 room: int) -> None:  # fmt: skip
        super().__init__()
        self.body, self.inputs = program.graph_module, program.inputs
        self.embedding, self.head, self.positions = embedding, head, positions
        self.length = state.seen  # index of the first new token
        self.used = [table.fixed - period for table in state.tables]
        self.room = room
        self.period = period  # steps between two compactions, after each of which slots are used anew; 0: none
        self.state = sorted(cache_arrays(state))
        self.depth = len(state.layers)

    def forward(self, input_ids: Tensor, step: Tensor, past_key_values: dict[str, Tensor]) -> dict[str, Any]:
        held = {name: past_key_values[name].clone() for name in self.state}
        length = past_key_values.get("length", self.length)
        given = {"inputs_embeds": self.embedding(input_ids), ports.QUERY.name: step + length, ports.START.name: held["start"]}
        given["position_ids"] = self.positions.step(past_key_values["next_position"], length - held["start"], step)
        if "limit" in held:
            given[ports.LIMIT.name] = held["limit"]
        slot = step % self.period if self.period else step
        for number, used in enumerate(self.used):
            slots = held[f"{number}.position"].shape[-1]
            given[ports.SLOT.at(number)] = slot + (used if self.period else slots - self.room)
            given |= {f"{what}_{number}": held[f"{number}.{what}"] for what in ARRAYS if f"{number}.{what}" in held}
        for i in range(self.depth):
            given |= {ports.KEYS.at(i): held[f"{i}.key"], ports.VALUES.at(i): held[f"{i}.value"]}
        given |= {ports.SHIFT.at(name.removeprefix("shift.")): held[name] for name in held if name.startswith("shift.")}
        hidden = self.body(*(given[name] for name in self.inputs))[0]
        changed = {name: x for name, x in held.items() if name.split(".")[-1] in ("key", "value", *ARRAYS)}
        return {"logits": self.head(hidden[:, -1]), "present": changed}


class CompactStage(StageModule):
    """Moves the entries worth most to the front of every buffer, as the schedule's period asks for (pattern S6)."""

    def __init__(self, state: State, period: int) -> None:
        super().__init__()
        assert state.kv is not None
        self.kv, self.length = state.kv, state.seen
        self.targets = [table.fixed - period for table in state.tables]
        self.state = [name for name in sorted(cache_arrays(state)) if name.split(".")[-1] in ("key", "value", *ARRAYS)]

    def forward(self, step: Tensor, past_key_values: dict[str, Tensor]) -> dict[str, Any]:
        held = {name: past_key_values[name].clone() for name in self.state}
        start, length = past_key_values["start"], past_key_values.get("length", self.length)
        for i, target in enumerate(self.targets):
            arrays = [held.get(f"{i}.{what}") for what in ("key", "value", *ARRAYS)]
            position, size, score = arrays[2:]
            shrink(arrays[0], arrays[1], position, score, size, step + length, start, self.kv.sinks, self.kv.recent, target)
        return {"present": held}
