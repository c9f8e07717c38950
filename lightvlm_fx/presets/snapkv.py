"""SnapKV (arXiv 2404.14469), as a schedule."""

from __future__ import annotations

from lightvlm_fx.frozen import Positive
from lightvlm_fx.kv import AnyBudget, Capacity, Kv
from lightvlm_fx.methods.budgets.uniform import Uniform as UniformBudget
from lightvlm_fx.methods.entry_scores.window import Kernel, Window
from lightvlm_fx.methods.moments import Prefill
from lightvlm_fx.schedule import Schedule

SURE = (
    "Read from the authors' code: once after the prompt, sums over the last 32 rows, averaged over 5 neighbouring keys; the window "
    "stays. Ours: heads of a KV head share one choice, and 512 entries."
)


def snapkv(capacity: Capacity = 512, window: Positive = 32, kernel: Kernel = 5, budgets: AnyBudget = UniformBudget()) -> Schedule:
    """SnapKV (arXiv 2404.14469): once after the prompt, what its last queries attend to, smoothed over neighbours."""
    kv = Kv(capacity=capacity, when=Prefill(), score=Window(window=window, kernel=kernel), recent=window, sinks=0, budgets=budgets)
    return Schedule(name="snapkv", kv=kv)
