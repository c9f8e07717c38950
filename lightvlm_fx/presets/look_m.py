"""LOOK-M (arXiv 2406.18139), as a schedule."""

from __future__ import annotations

from lightvlm_fx.frozen import Count
from lightvlm_fx.kv import Capacity, Kv
from lightvlm_fx.methods.entry_merges.pivot import Pivot
from lightvlm_fx.methods.moments import Prefill
from lightvlm_fx.methods.registry import AnyEntryMerge
from lightvlm_fx.schedule import Schedule

SURE = (
    "Read from the authors' code: once after the prompt, column sums, text stays before pictures, the pivotal merge by the largest "
    "cosine of keys. Ours: values merge and keys stay as they are, within a modality, and a fixed capacity, which there all the text "
    "may exceed."
)


def look_m(capacity: Capacity = 0.2, recent: Count = 32, merge: AnyEntryMerge = Pivot()) -> Schedule:
    """LOOK-M (arXiv 2406.18139): text before pictures; values of what is dropped join survivors of their modality."""
    kv = Kv(capacity=capacity, when=Prefill(), text_first=True, merge=merge, recent=recent, sinks=0)
    return Schedule(name="look-m", kv=kv)
