"""Each layer's share of a cache budget, from what its attention looked like: data-dependent counts, constant shapes."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("lightvlm::kv_budgets", mutates_args=())
def kv_budgets(share: Tensor, count: Tensor, most: Tensor, least: int) -> Tensor:
    """Entries [B, L] int64 that each layer keeps; their sum over layers is that of `count` where the limits allow it.

    share [B, L] float32 of the sum, count [B, L] (what uniform budgets would keep), most [B, L] (what there is, and fits).
    """
    total = count.sum(1, keepdim=True).float()
    most = most.float()
    low = most.clamp_max(least)
    goal = torch.minimum(torch.maximum(total, low.sum(1, keepdim=True)), most.sum(1, keepdim=True))
    wanted = (share * total).double().clamp_min(1e-9)
    lower, upper = torch.full_like(wanted[:, :1], -20.0), torch.full_like(wanted[:, :1], 40.0)  # logs of a common factor
    for _ in range(60):  # by which the limits leave the sum as it should be
        middle = (lower + upper) / 2
        reached = torch.minimum(torch.maximum(wanted * middle.exp(), low), most).sum(1, keepdim=True) >= goal
        lower, upper = torch.where(reached, lower, middle), torch.where(reached, middle, upper)
    clipped = torch.minimum(torch.maximum(wanted * upper.exp(), low), most)
    whole = (clipped + 1e-4).floor()
    left = (goal - whole.sum(1, keepdim=True)).round()
    fraction = torch.where(whole < most, clipped - whole, -1.0)
    rank = torch.empty_like(fraction).scatter_(
        1, fraction.sort(dim=1, descending=True, stable=True).indices,
        torch.arange(fraction.shape[1], dtype=fraction.dtype, device=fraction.device).expand(fraction.shape),
    )  # fmt: skip
    return (whole + ((rank < left) & (whole < most))).long()


@kv_budgets.register_fake
def _(share, count, most, least):
    return torch.empty_like(count)


def proportions(statistic: Tensor) -> Tensor:
    """Shares [B, L] of statistics [B, L, n] that are not negative: the mean over n, each divided by its sum over layers."""
    positive = statistic.clamp_min(1e-6)
    return (positive / positive.sum(1, keepdim=True)).mean(-1)
