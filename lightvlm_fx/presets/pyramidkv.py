"""PyramidKV (arXiv 2406.02069), as a schedule."""

from __future__ import annotations

from lightvlm_fx.frozen import Positive
from lightvlm_fx.kv import Capacity
from lightvlm_fx.methods.budgets.pyramid import Pyramid
from lightvlm_fx.methods.entry_scores.window import Kernel
from lightvlm_fx.presets.snapkv import snapkv
from lightvlm_fx.schedule import Schedule

SURE = (
    "Read from the authors' code: SnapKV's score, and a linear fall from low to high layers with beta = 20, uniform where the prompt "
    "is short. Ours: heads of a KV head share one choice, and 512 entries."
)


def pyramidkv(capacity: Capacity = 512, window: Positive = 32, kernel: Kernel = 5) -> Schedule:
    """PyramidKV (arXiv 2406.02069): as SnapKV, with more entries in lower layers than in upper ones."""
    return Schedule(name="pyramidkv", kv=snapkv(capacity, window, kernel, Pyramid()).kv)
