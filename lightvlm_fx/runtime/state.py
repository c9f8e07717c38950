"""What a prefill leaves, as the caches that the steps go on with."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.kv import Kv
from lightvlm_fx.runtime.cache import BufferLayer, SlotTable, State, Store
from lightvlm_fx.runtime.kv_plan import KvPlan
from lightvlm_fx.schedule import Schedule


def new_state(
    named: dict[str, Tensor], segment: Tensor, schedule: Schedule, kv: KvPlan | None, depth: int, owner: object, room: int = 0
) -> State:
    """The caches after a prefill that gave `named`; `segment` [B, S] is the prompt's.

    One table for the layers between two cuts; one a layer where their entries are bounded. With `room`, buffers take so many new
    tokens and never grow.
    """
    rows, length = segment.shape
    start = (segment == -2).sum(1)
    place = torch.arange(length, device=segment.device).expand(rows, -1)
    shifts: list[Tensor] = []
    held: list[tuple[Tensor, Tensor | None]] = []  # sequence index and size of each token, from cut to cut
    segments = []
    count = (segment != -2).sum(1)
    for number in range(len(schedule.cuts) + 1):
        if number:
            place = place.gather(1, named[f"index.{number - 1}"])
            segment = named[f"segment.{number - 1}"]
            if schedule.cuts[number - 1].positions == "compact":
                shifts.append(count - (segment != -2).sum(1))
        counted = any(cut.proportional for cut in schedule.cuts[:number])
        size = named[f"size.{number - 1}"] if counted else None
        segments.append(segment)
        held.append((torch.where(segment == -2, -1, place), size))
    table_of = list(schedule.token_sets(depth))
    if kv is None or schedule.kv is None:
        tables = [SlotTable(number, *arrays, fixed=room and arrays[0].shape[1] + room) for number, arrays in enumerate(held)]
    else:
        tables = [_bounded_table(schedule.kv, kv, layer, *held[table_of[layer]], named, room) for layer in range(depth)]
        table_of = list(range(depth))
    state = State(tables, table_of, length, shifts, start, owner, schedule, kv)
    state.layers = [BufferLayer(state, tables[table_of[i]], named.pop(f"keys.{i}"), named.pop(f"values.{i}")) for i in range(depth)]
    if schedule.kv and schedule.kv.when.by_turn:
        sets = schedule.token_sets(depth)
        state.stores = [Store(layer, segments[sets[i]], schedule.kv.merge) for i, layer in enumerate(state.layers)]
        for i, store in enumerate(state.stores):
            if f"entry.{i}" in named:
                store.read(named[f"kv_index.{i}"], named[f"entry.{i}"])
    return state


def _bounded_table(
    kv: Kv, plan: KvPlan, layer: int, place: Tensor, size: Tensor | None, named: dict[str, Tensor], room: int
) -> SlotTable:
    """The table of one layer whose entries are bounded: what `bound-prefill` kept of the tokens at `place` [B, S]."""
    heads = 1 if kv.shared else named[f"keys.{layer}"].shape[1]
    entry = named.get(f"entry.{layer}") if not kv.when.by_turn else None  # a turn chooses from everything

    def kept(x: Tensor) -> Tensor:
        x = x.unsqueeze(1).expand(-1, heads, -1)
        return x if entry is None else x.gather(2, entry.clamp_min(0))

    position = kept(place) if entry is None else torch.where(entry < 0, -1, kept(place))
    fixed = plan.capacity[layer] if kv.when.fixed else room and position.shape[2] + room
    merged = named.get(f"kv_size.{layer}")
    if merged is None and kv.merge.counts:
        merged = torch.ones_like(position, dtype=torch.float32) if size is None else kept(size)
    elif merged is None and size is not None:
        merged = kept(size)
    table = SlotTable(layer, position, merged, named.get(f"score.{layer}"), fixed)
    if kv.when.fixed:
        table.close(plan.own[:, layer])
    if kv.when.period:
        table.begin_periods(kv.when.period)
    return table
