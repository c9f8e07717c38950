"""The cache of a compiled model: one buffer a layer, as long as the cuts before it leave tokens.

The layers go into the transformers `Cache` that generate() made. `layers[l].keys` is the physical buffer
[B, G, C_l, d]; `get_seq_length()` is the logical length, as if nothing had been removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.nn import functional as F
from transformers.cache_utils import CacheLayerMixin

from lightvlm_fx.compat import NoLargestLength, settled
from lightvlm_fx.errors import NotSupported
from lightvlm_fx.graph import ports
from lightvlm_fx.methods.base import EntryMerge, View
from lightvlm_fx.ops.bounded_attention import CLOSED, EMPTY, shrink
from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.runtime.kv_plan import KvPlan
from lightvlm_fx.schedule import Schedule

OPS = torch.ops.lightvlm
CHUNK = 256  # slots a buffer grows by


class SlotTable:
    """What the layers between two cuts share: which sequence index each slot holds, and how many are used.

    `position` [B, C], or [B, G, C] where every layer has one of its own because its entries are bounded; `size`
    and `score` have its shape. `fixed` slots (0: as many as needed) is the buffers' size once and for all.
    """

    def __init__(
        self, number: int, position: Tensor, size: Tensor | None = None, score: Tensor | None = None, fixed: int = 0
    ) -> None:
        self.number, self.fixed = number, fixed
        self.used = position.shape[-1]
        slots = fixed or self.used
        self.position = _grown(position, -1, slots, -1)
        # original tokens that each slot stands for, where attention counts them
        self.size = None if size is None else _grown(size.clamp_min(1), -1, slots, 1)
        self.score = None if score is None else _grown(score, -1, slots, 0)

    def capacity(self, tokens: int) -> int:
        """Slots for `tokens` and a step more. A prompt's buffers grow at its first step: until then they hold no spare slot."""
        return self.fixed or -(-(tokens + 1) // CHUNK) * CHUNK

    def slots(self, n: int) -> Tensor:
        return torch.arange(self.used, self.used + n, device=self.position.device)

    def close(self, capacities: Tensor) -> None:
        """Close the last empty slots of rows that may hold fewer entries, `capacities` [B], than the buffers have slots."""
        empty = self.position == EMPTY
        nth_last = empty.flip(-1).cumsum(-1).flip(-1)
        too_many = (self.position.shape[-1] - capacities).view(-1, *[1] * (self.position.ndim - 1))
        self.position = torch.where(empty & (nth_last <= too_many), CLOSED, self.position)

    def begin_periods(self, every: int) -> None:
        """Append from the end of the buffers on, whose size is what stays of a period; each period is `every` tokens long.

        Periods begin with the prompt's end, and not when slots run out: when that is differs with the longest row of a batch.
        """
        self.used, self.fixed = self.fixed, self.fixed + every
        self.grow(self.fixed)

    def grow(self, slots: int) -> None:
        self.each(lambda x, fill: _grown(x, -1, slots, fill))

    def each(self, change: Callable[[Tensor, int], Tensor]) -> None:
        """Replace every array x by `change(x, fill)`, where `fill` is what an empty slot of it holds."""
        self.position = change(self.position, -1)
        self.size = None if self.size is None else change(self.size, 1)
        self.score = None if self.score is None else change(self.score, 0)


class State:
    """Shared by all layers of one cache: the tables, the logical length, and what made them.

    `start` [B] is the sequence index of each row's first real token.
    """

    def __init__(
        self, tables: list[SlotTable], layer_table: list[int], seen: int, shifts: list[Tensor], start: Tensor, owner: object,
        schedule: Schedule, plan: KvPlan | None,
    ) -> None:  # fmt: skip
        self.tables, self.layer_table, self.seen, self.shifts, self.owner = tables, layer_table, seen, shifts, owner
        self.start, self.schedule, self.kv = start, schedule, schedule.kv
        self.count = None if plan is None else plan.count  # [B, L]: visual entries that a question may read
        self.limit = None if plan is None else plan.own  # [B, L]: entries that a layer may hold while decoding
        self.layers: list[BufferLayer] = []
        self.stores: list[Store] = []

    @property
    def room(self) -> int:
        """New tokens that one call may bring: so many entries are neither protected nor new."""
        if self.kv is None or not self.kv.when.fixed:
            return 1 << 30
        if self.kv.when.period:
            return self.kv.when.period
        assert self.limit is not None
        return max(1, int(self.limit.min()) - self.kv.sinks - self.kv.recent)  # of the row that may hold the fewest

    def reserve(self, n: int) -> None:
        """Make room for `n` more tokens in every buffer."""
        for table in self.tables:
            if table.used + n <= table.position.shape[-1]:
                continue
            if self.kv is not None and self.kv.when.overwrites:
                continue  # the step itself finds the slots
            layers = [layer for layer in self.layers if layer.table is table]
            if self.kv is not None and self.kv.when.period:
                target = table.fixed - self.kv.when.period
                for layer in layers:
                    now = torch.tensor([self.seen], device=layer.device)
                    shrink(layer.keys, layer.values, table.position, table.score, table.size, now, self.start,
                           self.kv.sinks, self.kv.recent, target)  # fmt: skip
                table.used = target
                continue
            size = table.capacity(table.used + n)
            table.grow(size)
            for layer in layers:
                layer.keys, layer.values = (_grown(x, 2, size, 0) for x in (layer.keys, layer.values))

    def inputs(self, n: int) -> dict[str, Tensor]:
        """What a step of `n` new tokens reads, by name."""
        here = torch.arange(self.seen, self.seen + n, device=self.start.device)
        given = {ports.QUERY.name: here, ports.START.name: self.start} | {ports.SHIFT.at(i): shift for i, shift in enumerate(self.shifts)}
        if self.limit is not None:
            given[ports.LIMIT.name] = self.limit
        for table in self.tables:
            given |= {ports.POSITION.at(table.number): table.position, ports.SLOT.at(table.number): table.slots(n)}
            given |= {port.at(table.number): x for port in (ports.SIZE, ports.SCORE) if (x := getattr(table, port.name)) is not None}
        for i, layer in enumerate(self.layers):
            given |= {ports.KEYS.at(i): layer.keys, ports.VALUES.at(i): layer.values}
        return given

    def advance(self, n: int) -> None:
        self.seen += n
        for table in self.tables:
            table.used += n

    def pick_rows(self, rows: Tensor) -> None:
        """Replace the batch rows by `rows` of them (beam search)."""
        for table in self.tables:
            table.each(lambda x, fill: x.index_select(0, rows))
        self.shifts = [shift.index_select(0, rows) for shift in self.shifts]
        self.start = self.start.index_select(0, rows)
        self.count = None if self.count is None else self.count.index_select(0, rows)
        self.limit = None if self.limit is None else self.limit.index_select(0, rows)
        for layer in self.layers:
            layer.keys, layer.values = layer.keys.index_select(0, rows), layer.values.index_select(0, rows)
        for store in self.stores:
            store.pick_rows(rows)


class Store:
    """Everything that one layer ever wrote, while its buffers hold what the latest question reads (pattern S5).

    The visual entries that are not read are merged into those that are, where `merge` does so. Only the buffers are merged.
    """

    def __init__(self, layer: BufferLayer, segment: Tensor, merge: EntryMerge) -> None:
        table, used = layer.table, layer.table.used
        self.layer, self.merge = layer, merge
        self.segment = segment  # [B, C]: PADDING, TEXT or the number of an image
        self.keys, self.values, self.position = layer.keys[:, :, :used], layer.values[:, :, :used], table.position[..., :used]
        self.size = None if table.size is None else table.size[..., :used]
        self.synced = used  # slots of the layer's buffers that stand here too

    def bring_in(self) -> None:
        """Add what was generated since the latest choice."""
        table, new = self.layer.table, slice(self.synced, self.layer.table.used)
        self.keys = torch.cat([self.keys, self.layer.keys[:, :, new]], 2)
        self.values = torch.cat([self.values, self.layer.values[:, :, new]], 2)
        self.position = torch.cat([self.position, table.position[..., new]], -1)
        if self.size is not None and table.size is not None:
            self.size = torch.cat([self.size, table.size[..., new]], -1)
        more = self.position.shape[-1] - self.segment.shape[1]
        self.segment = F.pad(self.segment, (0, more), value=TEXT)
        self.synced = table.used

    def read_all(self) -> None:
        """Let the layer read everything, as a question does."""
        self.bring_in()
        self._put(self.position, self.keys, self.values, self.size)

    def segments(self) -> Tensor:
        """What stands in each slot [B, C] of the layer's buffers, while they hold everything."""
        return F.pad(self.segment, (0, self.layer.keys.shape[2] - self.segment.shape[1]), value=PADDING)

    def choose(self, asked: Tensor, count: Tensor) -> None:
        """Let the layer read all text and the `count` [B] visual entries that were asked for most."""
        self.bring_in()
        score, text = asked[..., : self.segment.shape[1]], int((self.segment == TEXT).sum(1).max())
        length = min(self.segment.shape[1], text + int(count.max()))
        self.read(*OPS.keep_entries(score, self.segment, count, length, 0, 0, True, False, 0.0))

    def read(self, index: Tensor, entry: Tensor) -> None:
        """Let the layer read what `keep_entries` chose: index, entry [B, 1, K]."""
        position = torch.where(entry < 0, EMPTY, self.position.gather(2, index))
        if self.merge.counts:
            size = None if self.size is None else self.size[:, 0]
            view = View(keys=self.keys, values=self.values, size=size, segment=self.segment, index=index, entry=entry)
            keys, values, size, _ = self.merge.merge(replace(view, went=self.merge.went(view)) if "went" in self.merge.reads else view)
            self._put(position, keys, values, size.clamp_min(1))
        else:
            size = None if self.size is None else OPS.take_entries(self.size, index)
            self._put(position, OPS.take_entries(self.keys, index), OPS.take_entries(self.values, index), size)

    def _put(self, position: Tensor, keys: Tensor, values: Tensor, size: Tensor | None) -> None:
        """Make these the layer's buffers."""
        table = self.layer.table
        table.used = self.synced = position.shape[-1]
        slots = table.capacity(table.used)
        table.position = _grown(position, -1, slots, -1)
        table.size = None if size is None else _grown(size, -1, slots, 1)
        self.layer.keys, self.layer.values = _grown(keys, 2, slots, 0), _grown(values, 2, slots, 0)

    def pick_rows(self, rows: Tensor) -> None:
        self.keys, self.values, self.position, self.segment = (
            x.index_select(0, rows) for x in (self.keys, self.values, self.position, self.segment)
        )
        self.size = None if self.size is None else self.size.index_select(0, rows)


class BufferLayer(NoLargestLength, CacheLayerMixin):
    """One decoder layer's buffers. Written by the compiled step only."""

    is_sliding = False
    is_compileable = False

    def __init__(self, state: State, table: SlotTable, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        size = table.position.shape[-1]
        self.state, self.table = state, table
        self.keys, self.values = _grown(keys, 2, size, 0), _grown(values, 2, size, 0)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers are made by the compiled prefill."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise NotSupported("this cache belongs to a compiled model and is written by it alone; give the source model a new one")

    def get_seq_length(self) -> int:
        return self.state.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.state.seen + query_length, 0

    def reset(self) -> None:
        raise NotSupported("a compiled model's cache cannot be reset; start the next generate() without past_key_values")

    def crop(self, *args: Any) -> None:
        raise NotSupported(
            "a compiled model's cache cannot be cropped, so assisted and contrastive generation are not available; "
            "use greedy, sampled or beam search"
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self is self.state.layers[0]:  # rows of all layers move together
            self.state.pick_rows(beam_idx.to(self.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.reorder_cache(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))


def _grown(x: Tensor, dim: int, size: int, fill: int) -> Tensor:
    """`x` with `dim` extended to `size` by `fill`: contiguous, and no view of something larger."""
    if isinstance(x.shape[dim], SymInt):
        return _grown_from_any(x, dim, size, fill)
    assert size >= x.shape[dim], f"a buffer of {x.shape[dim]} slots cannot shrink to {size}: a defect of lightvlm_fx"
    if size == x.shape[dim] and x.is_contiguous() and x.untyped_storage().nbytes() == x.nbytes:
        return x
    after = x.ndim - 1 - dim % x.ndim
    return F.pad(x, [0, 0] * after + [0, size - x.shape[dim]], value=fill).contiguous()


def _grown_from_any(x: Tensor, dim: int, size: int, fill: int) -> Tensor:
    """`_grown` in an exported graph, of a symbolic number of slots: to a number more than those, or to a number of its own.

    How much a number is more than a symbol cannot be a shape: it may be nothing.
    """
    slots = x.shape[dim]
    more = settled(size - slots)
    if not isinstance(more, SymInt):
        shape = list(x.shape)
        shape[dim] = more
        return torch.cat([x, x.new_full(shape, fill)], dim) if more else x
    here = torch.arange(size, device=x.device)
    after = x.ndim - 1 - dim % x.ndim
    there = (here < slots).view(-1, *[1] * after)
    return torch.where(there, x.index_select(dim, here.clamp_max(slots - 1)), fill)
