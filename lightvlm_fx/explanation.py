"""`lightvlm.explain`: what a schedule will do to a model, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightvlm_fx.model.layout import Layout, Placeholders
from lightvlm_fx.model.locate import check_supported, decoder_path
from lightvlm_fx.model.tower_costs import tower_flops
from lightvlm_fx.runtime.kv_plan import KvPlan
from lightvlm_fx.schedule import Schedule, as_schedule

DEFAULT_TEXT = 64  # text tokens assumed where no batch is given
DEFAULT_VISUAL = 576  # visual tokens assumed where neither batch nor config tells


@dataclass(frozen=True)
class Explanation:
    """Prints as a table. Counts are tokens a row; FLOPs are of the decoder's prefill, of the vision tower's blocks where named so; bytes
    of the KV cache.
    """

    model: str
    schedule: Schedule
    rows: int
    tokens_per_layer: tuple[float, ...]
    visual_per_layer: tuple[float, ...]
    flops: float
    full_flops: float
    kv_bytes: int
    full_kv_bytes: int
    note: str
    short: str = ""  # what is kept of rows whose share is below what is protected, where there are such
    tower_flops: float = 0.0  # 0: not known
    full_tower_flops: float = 0.0
    entries_per_layer: tuple[int, ...] = ()  # cache entries that a layer has room for after the prompt, where they are bounded

    @property
    def flops_ratio(self) -> float:
        """FLOPs of this prefill over the full model's."""
        return self.flops / self.full_flops

    @property
    def ideal_speedup(self) -> float:
        """How many times as fast a prefill could be if FLOPs were all that takes time."""
        return self.full_flops / self.flops

    @property
    def ideal_from_pixels(self) -> float:
        """`ideal_speedup` with the vision tower's blocks."""
        return (self.full_flops + self.full_tower_flops) / (self.flops + self.tower_flops)

    @property
    def mean_visual_tokens(self) -> float:
        """Visual tokens of a row, mean over the layers."""
        return sum(self.visual_per_layer) / len(self.visual_per_layer)

    def __str__(self) -> str:
        lines = [f"{self.model} with schedule {self.schedule.name} ({self.schedule.fingerprint}): {self.note}"]
        lines.append(f"{'layers':<10}{'tokens':>8}{'visual':>8}   what happens before the first of them")
        depth = len(self.tokens_per_layer)
        starts = [0, *self.schedule.layers(depth)]
        for i, (first, end) in enumerate(zip(starts, [*starts[1:], depth], strict=True)):
            span = f"{first}-{end - 1}" if end - 1 > first else str(first)
            what = "-"
            if i:
                cut = self.schedule.cuts[i - 1]
                what = f"{cut.combine.name} by {cut.score.said}"
                what += f", keep {'at most ' * cut.score.adapts}{format(cut.keep, '.3g') if isinstance(cut.keep, float) else cut.keep}"
                what += {"keep": "", "compact": ", renumbered", "input": ", positions as of a short prompt"}[cut.positions]
                what += ", proportional attention" * cut.proportional
            if end > first:
                lines.append(f"{span:<10}{self.tokens_per_layer[first]:>8.0f}{self.visual_per_layer[first]:>8.0f}   {what}")
        lines.append(
            f"prefill FLOPs {_figures(self.flops / 1e9)} of {_figures(self.full_flops / 1e9)} GFLOP "
            f"({100 * self.flops_ratio:.1f} %, ideal speed-up {self.ideal_speedup:.2f}x); "
            f"mean visual tokens {self.mean_visual_tokens:.1f}; "
            f"KV cache {_bytes(self.kv_bytes)} of {_bytes(self.full_kv_bytes)}"
        )
        if self.schedule.downsample is not None:
            lines.append(f"pictures have {self.schedule.downsample:.3g} of their height and width before the vision tower")
        for inside in self.schedule.tower:
            at = f"in block {inside.layer}" if isinstance(inside.layer, int) else f"at {inside.layer:.3g}"
            lines.append(f"{at} of the vision tower: {inside.combine.name} by {inside.score.name}, keep {inside.keep:.3g}"
                         + ", proportional attention" * inside.proportional)  # fmt: skip
        if self.schedule.leaves_in_tower and self.full_tower_flops:
            lines.append(f"vision tower {_figures(self.tower_flops / 1e9)} of {_figures(self.full_tower_flops / 1e9)} GFLOP; "
                         f"ideal speed-up from pixels {self.ideal_from_pixels:.2f}x")  # fmt: skip
        if self.schedule.freeze:
            layers = self.schedule.frozen(depth)
            lines.append(f"visual tokens keep their hidden state in {len(layers)} of {depth} layers: {', '.join(map(str, layers))}")
        if self.entries_per_layer and self.schedule.kv:
            kv, entries = self.schedule.kv, self.entries_per_layer
            span = f"{min(entries)} to {max(entries)}" if len(set(entries)) > 1 else str(entries[0])
            held = f"{span} entries a layer by {kv.score.name}"
            more = f", {kv.prompt.name} after the prompt" if kv.prompt else ""
            more += f", {kv.visual_share:.0%} for pictures" * bool(kv.visual_share)
            more += f", {kv.merge.name} merging" * kv.merge.joins
            more += f", one choice for {kv.layers} layers" * (kv.layers > 1)
            lines.append(f"cache bounded {kv.when.said}: {held}{more}, {kv.sinks} sinks, {kv.recent} recent")
        if self.short:
            lines.append(self.short)
        return "\n".join(lines)

    __repr__ = __str__


def _bytes(n: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{_figures(n)} {unit}"
        n /= 1024  # type: ignore[assignment]
    return f"{_figures(n)} GiB"


def _figures(x: float) -> str:
    """Four figures, or all of those before the point: 12345 is no 1.234e+04."""
    return f"{x:.4g}" if x < 9999.5 else f"{x:.0f}"


def explain(model: Any, schedule: Schedule | str | Path, inputs: Any = None) -> Explanation:
    """Tokens per layer, prefill FLOPs and KV bytes of `model` under `schedule`; runs nothing.

    `inputs` is a processor's output; without it, one picture and 64 text tokens a row are assumed.
    Raises RefusedModel and ScheduleError as `compile` does.
    """
    schedule = as_schedule(schedule)
    check_supported(model)
    decoder = model.get_submodule(decoder_path(model))
    depth, placeholders = len(decoder.layers), Placeholders.of(model)
    if inputs is not None:
        layout = Layout.of(inputs["input_ids"], inputs.get("attention_mask"), placeholders, placeholders.grids(dict(inputs)))
        note = f"{len(layout.images)} rows, images of {layout.images} tokens"
    else:
        n = placeholders.per_image or DEFAULT_VISUAL
        ids = torch.full((1, n + DEFAULT_TEXT), -1)
        ids[:, 1 : n + 1] = placeholders.ids[0]
        layout = Layout.of(ids, None, placeholders)
        note = f"assuming one picture of {n} visual tokens and {DEFAULT_TEXT} text tokens"
    plan = layout.plan(schedule)
    rows, length = layout.segment.shape
    full_visual = sum(map(sum, layout.images)) / rows
    left = [full_visual, *(float(budget.sum()) / rows for budget in plan.budgets)]
    tokens, visual = plan.tokens(schedule, depth), [left[number] for number in schedule.token_sets(depth)]
    frozen, text = schedule.frozen(depth), plan.text
    costs = [layer_costs(decoder.layers[i], decoder.config) for i in range(depth)]
    flops = [cost.frozen(t, text) if i in frozen else cost.full(t) for i, (cost, t) in enumerate(zip(costs, tokens, strict=True))]
    itemsize = next(decoder.parameters()).element_size()
    bound = KvPlan.of(layout, plan, schedule, depth) if schedule.kv else None
    entries: list[int] = []
    if bound and schedule.kv:  # steps that overwrite have all their slots from the start
        entries = list(bound.capacity) if schedule.kv.when.overwrites else list(bound.lengths)
    held = [n + t for n, t in zip(entries, tokens, strict=True)] if schedule.kv and schedule.kv.when.by_turn else entries or tokens
    kv = [2 * _kv_width(decoder.config) * itemsize] * depth
    tower = tower_flops(model, [n for row in layout.images for n in row], schedule)
    return Explanation(
        model=type(model).__name__,
        schedule=schedule,
        rows=rows,
        tokens_per_layer=tuple(map(float, tokens)),
        visual_per_layer=tuple(visual),
        flops=rows * sum(flops),
        full_flops=rows * sum(cost.full(length) for cost in costs),
        kv_bytes=int(rows * sum(w * t for w, t in zip(kv, held, strict=True))),
        full_kv_bytes=int(rows * sum(w * length for w in kv)),
        note=note,
        tower_flops=tower[0],
        full_tower_flops=tower[1],
        short=bound.note if bound else "",
        entries_per_layer=tuple(entries),
    )


@dataclass(frozen=True)
class LayerCosts:
    """FLOPs of one decoder layer: of its matrices a token, of those that make keys and values, of attention a pair of tokens."""

    linear: float
    keys: float
    pair: float

    def full(self, tokens: float) -> float:
        """Of causal attention, which is half of all pairs."""
        return self.linear * tokens + self.pair / 2 * tokens * tokens

    def frozen(self, tokens: float, text: float) -> float:
        """Of a layer in which only text asks, goes through the MLP, and leaves its visual tokens as they are."""
        return self.keys * tokens + (self.linear - self.keys) * text + self.pair * tokens * text


FUSED = ("qkv", "query_key_value", "Wqkv", "c_attn")  # one matrix makes queries, keys and values


def layer_costs(layer: nn.Module, config: Any) -> LayerCosts:
    """What one decoder layer costs: matrices, and attention."""
    active = _active_share(config)
    linear = keys = 0.0
    for name, parameter in layer.named_parameters():
        if parameter.ndim >= 2:
            count = parameter.numel() * (active if "expert" in name and "shared" not in name else 1.0)
            linear += count
            keys += count * any(part in name for part in ("k_proj", "v_proj", "kv_", *FUSED))
    heads, width = config.num_attention_heads, _head_dim(config)
    return LayerCosts(2 * linear, 2 * keys, 4.0 * heads * width)


def _active_share(config: Any) -> float:
    """Share of a mixture's experts that one token runs through (1 for a dense model)."""
    total = _first(config, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    used = _first(config, "num_experts_per_tok", "moe_topk", "top_k_experts")
    return used / total if total and used else 1.0


def _first(config: Any, *names: str) -> int | None:
    """The first of these settings that the config has."""
    return next((n for name in names if (n := getattr(config, name, None))), None)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _kv_width(config: Any) -> int:
    return (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * _head_dim(config)
