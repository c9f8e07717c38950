"""What a `[kv]` table means for one batch: entries that every row keeps in each layer, and the buffers' sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightvlm_fx.layout import Layout, Plan
from lightvlm_fx.ops.segments import PADDING
from lightvlm_fx.schedule import Schedule

SPARE = 2.5  # how far above the mean the budget of one layer may go, where each prompt shares it anew


@dataclass(frozen=True)
class KvPlan:
    """One batch under one bound."""

    count: Tensor  # [B, L] int64: entries (of="visual": visual entries) that stay behind the prompt
    lengths: tuple[int, ...]  # slots of each layer behind the prompt; 0: all that the layer wrote
    most: tuple[int, ...]  # entries (visual entries) of a layer at most, where each prompt shares the budget anew
    capacity: tuple[int, ...]  # entries that each layer may hold while decoding
    own: Tensor  # [B, L] int64: the same of each row; a share of the prompt differs with it

    @staticmethod
    def of(layout: Layout, plan: Plan, schedule: Schedule, depth: int) -> KvPlan:
        """Raises ScheduleError where a row's share of the prompt is below what is protected."""
        kv, rows = schedule.kv, len(layout.images)
        assert kv is not None
        real = (layout.segment != PADDING).sum(1).tolist()
        firsts = schedule.layers(depth) if schedule.cuts else []
        count, lengths, most, capacity = torch.zeros(rows, depth, dtype=torch.int64), [], [], []
        wanted = [kv.capacities(sum(images) if kv.of == "visual" else n, depth) if n else [0] * depth
                  for images, n in zip(layout.images, real, strict=True)]  # fmt: skip
        for layer in range(depth):
            cut = sum(first <= layer for first in firsts) - 1
            arrived = layout.segment.shape[1] - sum(plan.removed[: cut + 1])
            most_here = math.ceil(SPARE * max(row[layer] for row in wanted)) if kv.adaptive else 0
            fits, longest = True, 0
            for row, images in enumerate(layout.images):
                visual = int(plan.budgets[cut][row].sum()) if cut >= 0 else sum(images)
                text = real[row] - sum(images)
                here = visual if kv.of == "visual" else text + visual
                if kv.visual_share:
                    pictures = min(visual, kv.pictures(wanted[row][layer]))
                    here = pictures + min(text, wanted[row][layer] - pictures)
                    count[row, layer] = wanted[row][layer]
                    fits &= here == text + visual
                    longest = max(longest, here)
                    continue
                count[row, layer] = min(wanted[row][layer], here)
                fits &= wanted[row][layer] >= here
                longest = max(longest, max(int(count[row, layer]), min(most_here, here)) + (text if kv.of == "visual" else 0))
            lengths.append(0 if fits else min(longest, arrived))
            most.append(most_here)
            capacity.append(max(row[layer] for row in wanted))
        own = torch.tensor(wanted, dtype=torch.int64)
        return KvPlan(count.to(layout.segment.device), tuple(lengths), tuple(most), tuple(capacity), own.to(layout.segment.device))
