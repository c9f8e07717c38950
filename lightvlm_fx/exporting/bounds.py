"""What a bucket takes at most, and how many tokens and cache entries stay of anything up to that: integer tables, made once at export.

A graph for every picture up to a bound looks up what a picture of n tokens, or a row of n tokens, keeps. The tables are made by the
schedule itself, so that they say what `Layout.plan` and `KvPlan` say at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightvlm_fx.artifact.lengths import LEAST_OF_PART, Lengths
from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.methods.base import Method
from lightvlm_fx.ops.tiles import parts
from lightvlm_fx.runtime.kv_plan import SPARE, KvPlan
from lightvlm_fx.schedule import Schedule, shared_sizes

FEWEST = 8  # tokens of a sequence of symbolic length: torch.export takes such a length, and a few less, for more than one


@dataclass(frozen=True)
class Bounds:
    """Rows, and of each row the tokens of text and of pictures and the number of pictures; a picture has a multiple of `unit` tokens."""

    rows: int
    text: int
    visual: int
    pictures: int
    unit: int = 1

    @property
    def length(self) -> int:
        return self.text + self.visual


@dataclass(frozen=True)
class Tables:
    """What stays under one schedule, for a decoder of L layers.

    `kept` [C, V + 1]: of a picture of n tokens after each cut. `stay`: of a row after each cut at most. `wanted` [N + 1, L], where
    entries are bounded: what a layer is to hold of a row of n tokens (of="visual": n visual tokens); `entries` and `slots`: of each
    layer, the most that it can hold after the prompt and while decoding. Below `least_picture` tokens a picture, and below
    `least_row` tokens a row, the schedule has no answer.
    """

    kept: Tensor
    stay: tuple[int, ...]
    cut_of: tuple[int, ...]  # of each layer, how many cuts come before it
    wanted: Tensor | None
    entries: tuple[int, ...]
    slots: tuple[int, ...]
    least_picture: int
    least_row: int
    text: int  # tokens of text in a row at most

    @staticmethod
    def of(bounds: Bounds, schedule: Schedule, depth: int) -> Tables:
        """Raises ScheduleError where not even the largest picture and the longest row fit the schedule."""
        cut_of = schedule.token_sets(depth)
        sizes = [n for n in range(bounds.unit, bounds.visual + 1, bounds.unit) if not schedule.by_grid or math.isqrt(n) ** 2 == n]
        by_size, least_picture = _largest_run(sizes, schedule.budgets)
        kept = np.zeros((len(schedule.cuts), bounds.visual + 1), np.int64)
        for n, left in by_size.items():
            kept[:, n] = left
        most = [bounds.visual, *(_most(row, bounds, least_picture) for row in kept)]
        stay = tuple(bounds.text + n for n in most[1:])
        if schedule.kv is None:
            return Tables(torch.from_numpy(kept), stay, cut_of, None, (), (), least_picture, 1, bounds.text)
        kv = schedule.kv
        of_visual = kv.of == "visual"
        lengths = list(range(0 if of_visual else 1, bounds.visual + 1 if of_visual else bounds.length + 1))
        by_length, least_row = _largest_run(lengths, lambda n: kv.capacities(n, depth))
        wanted = np.zeros((lengths[-1] + 1, depth), np.int64)
        for n, row in by_length.items():
            wanted[n] = row
        slots, entries = tuple(int(n) for n in wanted.max(0)), []
        arrived = (bounds.length, *stay)
        for layer, cut in enumerate(cut_of):
            visual = min(most[cut], kv.pictures(slots[layer])) if kv.visual_share else most[cut]
            here = visual + (0 if of_visual else bounds.text)
            spare = math.ceil(SPARE * slots[layer]) if kv.adaptive else 0
            longest = max(min(slots[layer], here), min(spare, here)) + (bounds.text if of_visual else 0)
            entries.append(min(longest, arrived[cut]))
        return Tables(torch.from_numpy(kept), stay, cut_of, torch.from_numpy(wanted), tuple(entries), slots, least_picture,
                      1 if of_visual else max(1, least_row), bounds.text)  # fmt: skip

    def plan(self, schedule: Schedule, wanted: Tensor, visual: Tensor, text: Tensor, budgets: list[Tensor]) -> KvPlan:
        """What `KvPlan.of` gives for a batch: visual, text [B] count its tokens, budgets [B, I] what stays of them after each cut.

        `wanted` is the table, as a value of the graph that this tensor code is traced into.
        """
        kv = schedule.kv
        assert kv is not None
        own = wanted[visual if kv.of == "visual" else visual + text]  # [B, L]
        after = torch.stack([visual, *(budget.sum(1) for budget in budgets)], 1)
        here = torch.stack([after[:, cut] for cut in self.cut_of], 1)
        here = here if kv.of == "visual" else here + text.unsqueeze(1)
        count = own if kv.visual_share else torch.minimum(own, here)
        most = (own * round(2 * SPARE) + 1) // 2 if kv.adaptive else torch.zeros_like(own)
        return KvPlan(count, self.entries, most, self.slots, own)

    def lengths(self, schedule: Schedule, length: int) -> Lengths | None:
        """How long the sequences of a prompt are that is shorter than `length`; None where every prompt of the bucket needs that length."""
        least = _fewest(schedule)
        if least > length or min(self.entries, default=length) < LEAST_OF_PART:
            return None
        spare = len(self.stay) + 1
        kept, divided = self.kept.numpy(), tuple(parts(max(n, least), spare) for n in (length, *self.stay))
        kv = schedule.kv
        if kv is None or self.wanted is None:
            return Lengths(divided, least, kept, None, (), False, freezes=bool(schedule.freeze))
        numbers = shared_sizes(schedule, len(self.cut_of))
        layers = [numbers.index(number) for number in range(max(numbers) + 1)]  # the first of each group
        reach = self.wanted.numpy()[:, layers]
        reach = np.ceil(SPARE * reach).astype(np.int64) if kv.adaptive else reach
        cut_of = tuple(self.cut_of[layer] for layer in layers)
        return Lengths(divided, least, kept, reach, cut_of, kv.of == "visual", freezes=bool(schedule.freeze), visual_share=kv.visual_share)


def _fewest(schedule: Schedule) -> int:
    """Tokens that a sequence of symbolic length has at least: as many as the schedule's methods look at, or choose, by number."""
    methods: list[Method] = [method for cut in schedule.cuts for method in (cut.score, cut.combine)]
    if kv := schedule.kv:
        methods += [kv.score, kv.prompt or kv.score, kv.merge]
    return max([FEWEST, *(method.fewest for method in methods)])


def _largest_run(numbers: list[int], answer: Callable[[int], list[int]]) -> tuple[dict[int, list[int]], int]:
    """What `answer` gives for the numbers from which on it gives something for all, by number, and the least of them.

    Raises the ScheduleError of the last number where it gives none for that.
    """
    found: dict[int, list[int]] = {}
    for n in reversed(numbers):
        try:
            found[n] = answer(n)
        except ScheduleError:
            if n == numbers[-1]:
                raise
            break
    return found, min(found, default=0)


def _most(kept: np.ndarray, bounds: Bounds, least: int) -> int:
    """The most tokens that a row of pictures can keep, where a picture of n keeps kept[n]."""
    best = np.zeros(bounds.visual // bounds.unit + 1, np.int64)  # of n units at most
    by_unit = kept[:: bounds.unit]
    for _ in range(bounds.pictures):
        more = best.copy()
        for n in range(max(1, least // bounds.unit), len(best)):
            np.maximum(more[n:], best[: len(best) - n] + by_unit[n], out=more[n:])
        best = more
    return int(best[-1])
