"""MEDA (arXiv 2502.17599), as a schedule."""

from __future__ import annotations

from lightvlm_fx.frozen import Count
from lightvlm_fx.kv import Capacity, Kv
from lightvlm_fx.methods.budgets.entropy import Entropy
from lightvlm_fx.methods.entry_merges.pivot import Pivot
from lightvlm_fx.methods.moments import Prefill
from lightvlm_fx.methods.registry import AnyEntryMerge
from lightvlm_fx.schedule import Schedule

SURE = (
    "Read from the authors' code: the entropy of the whole attention map, softmax over the layers, then as LOOK-M; the paper's "
    "cross-modal entropy is never called there. Ours: the choice after the prompt, where theirs waits for the first step, and values "
    "alone merge."
)


def meda(capacity: Capacity = 0.2, recent: Count = 32, merge: AnyEntryMerge = Pivot()) -> Schedule:
    """MEDA (arXiv 2502.17599): as LOOK-M, with more entries in layers whose attention has a higher entropy."""
    kv = Kv(capacity=capacity, when=Prefill(), text_first=True, merge=merge, recent=recent, sinks=0, budgets=Entropy())
    return Schedule(name="meda", kv=kv)
