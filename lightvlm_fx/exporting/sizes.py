"""Which sizes of a bucket's stages are symbolic, by the names that they have in graphs and manifest, and between what they lie.

tokens      of a row, padded: as many times a part of it as graphs have tiles
features    visual tokens of all rows
stay_i      tokens of a row after cut i, as many times a part
stay_text   tokens of text in a row, where layers run for those alone
kv_stay_n   entries of a group of layers whose caches are bounded
slots_s     of the buffers of span s of layers, which take new tokens after what the prompt left
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightvlm_fx.artifact.lengths import LEAST_OF_PART, Lengths
from lightvlm_fx.artifact.schema import tile_of
from lightvlm_fx.exporting.bounds import Bounds, Tables
from lightvlm_fx.exporting.stages import cache_arrays
from lightvlm_fx.graph import ports
from lightvlm_fx.runtime.cache import State
from lightvlm_fx.schedule import Schedule, shared_sizes

Axes = dict[str, dict[int, str]]


@dataclass(frozen=True)
class Sizes:
    """Of one bucket; where nothing is symbolic, everything here is empty.

    `most`: the largest sizes of what only carries one, by name; `at`: those that a prefill is traced at. `appends`: whether caches grow
    by what is generated.
    """

    axes: dict[str, str] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    at: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    appends: bool = False

    @staticmethod
    def of(lengths: Lengths | None, bounds: Bounds, tables: Tables, schedule: Schedule, room: int) -> Sizes:
        if lengths is None:
            return Sizes()
        cut = {ports.STAY.at(i): n for i, n in enumerate(tables.stay)}
        parts = dict(zip(("tokens", *cut), lengths.parts, strict=True))
        longest = {name: lengths.of_part(parts[name], n) for name, n in ({"tokens": bounds.length} | cut).items()}
        # traced at lengths that differ from each other, as torch.export takes for the same what is the same there
        traced = {name: n + len(longest) - i for i, (name, n) in enumerate(longest.items())}
        ranges = {name: (lengths.of_part(parts[name]), n) for name, n in traced.items()}
        axes = {name: tile_of(name, n) for name, n in parts.items()}
        kept = {} if schedule.kv is None else {
            ports.KV_STAY.at(number): n for number, n in zip(shared_sizes(schedule, len(tables.entries)), tables.entries, strict=True)
        }  # fmt: skip
        kept |= {ports.STAY_TEXT.name: tables.text} if schedule.freeze else {}
        most = {name: parts[name] * longest[name] for name in cut} | kept
        ranges |= {name: (LEAST_OF_PART, n) for name, n in kept.items()} | {"features": (LEAST_OF_PART, bounds.rows * bounds.visual)}
        at = {name: parts[name] * n for name, n in traced.items()} | kept
        appends = schedule.kv is None or not schedule.kv.when.fixed
        return Sizes(axes | {name: name for name in kept}, most, at, ranges, appends)

    def carriers(self) -> dict[str, Tensor]:
        """The inputs of a prefill stage that carry a size only, at the largest."""
        return {name: torch.zeros(n, dtype=torch.int64) for name, n in self.most.items()}

    def traced(self, asked: dict[str, Tensor], embedded: dict[str, Any]) -> dict[str, Tensor]:
        """`asked`, inputs of a prefill stage, at the lengths that it is traced at."""
        if not self.axes:
            return asked
        more = self.at["tokens"] - asked["input_ids"].shape[1]
        along = {name: asked[name] for name in self._along(embedded)}
        longer = {name: torch.cat([x.new_zeros(len(x), more, *x.shape[2:]), x], 1) for name, x in along.items()}
        return asked | longer | {name: torch.zeros(self.at[name], dtype=torch.int64) for name in self.most}

    @staticmethod
    def _along(embedded: dict[str, Any]) -> tuple[str, ...]:
        """The inputs of a prefill stage that have a value, or several, for each token."""
        return ("input_ids", "attention_mask", *embedded)

    def embed(self, features: dict[str, Any]) -> Axes:
        return {"input_ids": {1: self.axes["tokens"]}} | {name: {0: "features"} for name in features} if self.axes else {}

    def prefill(self, embedded: dict[str, Any]) -> Axes:
        if not self.axes:
            return {}
        along = {name: {1: self.axes["tokens"]} for name in self._along(embedded)}
        return along | {name: {0: self.axes[name]} for name in self.most}

    def decode(self, state: State) -> Axes:
        """Keys and values are [B, G, C, d], what else there is of a slot [B, C] or [B, G, C]."""
        if not self.appends:
            return {}
        table = {str(i): layer.table.number for i, layer in enumerate(state.layers)}
        found: Axes = {}
        for name, x in cache_arrays(state).items():
            number, _, what = name.partition(".")
            if what in ("key", "value"):
                found[f"past_key_values.{name}"] = {2: f"slots_{table[number]}"}
            elif what in ("position", "size", "score"):
                found[f"past_key_values.{name}"] = {x.ndim - 1: f"slots_{number}"}
        return found
