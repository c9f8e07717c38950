"""What a `[kv]` table means for one batch: entries that every row keeps in each layer, and the buffers' sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightvlm_fx.model.layout import Layout, Plan
from lightvlm_fx.ops.segments import PADDING
from lightvlm_fx.schedule import Schedule

SPARE = 2.5  # how far above the mean the budget of one layer may go, where each prompt shares it anew


@dataclass(frozen=True)
class KvPlan:
    """One batch under one bound."""

    count: Tensor  # [B, L] int64: entries (of="visual": visual entries) that stay after the prompt
    lengths: tuple[int, ...]  # slots of each layer after the prompt, the longest row's
    most: Tensor  # [B, L] int64: entries (visual entries) of a layer at most, where each prompt shares the budget anew
    capacity: tuple[int, ...]  # entries that each layer may hold while decoding
    own: Tensor  # [B, L] int64: the same of each row; a share of the prompt differs with it
    note: str = ""  # what is to be told of rows whose share is below what is protected

    @staticmethod
    def of(layout: Layout, plan: Plan, schedule: Schedule, depth: int) -> KvPlan:
        """Raises ScheduleError where a count leaves a layer less than what is protected."""
        kv, rows = schedule.kv, len(layout.images)
        assert kv is not None
        real = (layout.segment != PADDING).sum(1).tolist()
        sets = schedule.token_sets(depth)
        count, most = (torch.zeros(rows, depth, dtype=torch.int64) for _ in range(2))
        lengths, capacity = [], []
        prompts = [sum(images) if kv.of == "visual" else n for images, n in zip(layout.images, real, strict=True)]
        wanted = [kv.capacities(n, depth) for n in prompts]
        for layer in range(depth):
            cut = sets[layer] - 1
            longest = 0
            for row, images in enumerate(layout.images):
                visual = int(plan.budgets[cut][row].sum()) if cut >= 0 else sum(images)
                text = real[row] - sum(images)
                here = visual if kv.of == "visual" else text + visual
                if kv.visual_share:
                    pictures = min(visual, kv.pictures(wanted[row][layer]))
                    here = pictures + min(text, wanted[row][layer] - pictures)
                    count[row, layer] = wanted[row][layer]
                    longest = max(longest, here)
                    continue
                count[row, layer] = min(wanted[row][layer], here)
                most[row, layer] = math.ceil(SPARE * wanted[row][layer]) if kv.adaptive else 0
                held = max(int(count[row, layer]), min(int(most[row, layer]), here))
                longest = max(longest, held + (text if kv.of == "visual" else 0))
            arrived = plan.stay[cut] if cut >= 0 else layout.segment.shape[1]
            lengths.append(min(longest, arrived))
            capacity.append(max(row[layer] for row in wanted))
        count, most, own = (x.to(layout.segment.device) for x in (count, most, torch.tensor(wanted, dtype=torch.int64)))
        return KvPlan(count, tuple(lengths), most, tuple(capacity), own, kv.raised(prompts, depth))
