"""VL-Cache (arXiv 2410.23317), as a schedule."""

from __future__ import annotations

from lightvlm_fx.frozen import Count
from lightvlm_fx.kv import Capacity, Heads, Kv
from lightvlm_fx.methods.budgets.density import Density as DensityBudget
from lightvlm_fx.methods.entry_scores.text import Text
from lightvlm_fx.methods.moments import Prefill
from lightvlm_fx.schedule import Schedule

SURE = (
    "No code of the authors is public; read from a third party's (EffiVLM-Bench), checked against notes of the paper: rows of the "
    "text after the picture, weights below 1 % of the largest as zero, one choice for all heads. Ours: shares that sum to the "
    "capacity, and 8 recent entries."
)


def vl_cache(capacity: Capacity = 0.1, recent: Count = 8, heads: Heads = "shared") -> Schedule:
    """VL-Cache (arXiv 2410.23317): scores by the text after the picture, budgets by how dense its attention is."""
    kv = Kv(capacity=capacity, when=Prefill(), score=Text(), budgets=DensityBudget(), heads=heads, recent=recent, sinks=0)
    return Schedule(name="vl-cache", kv=kv)
