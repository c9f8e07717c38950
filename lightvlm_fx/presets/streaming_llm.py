"""StreamingLLM (arXiv 2309.17453), as a schedule."""

from __future__ import annotations

from lightvlm_fx.frozen import Count
from lightvlm_fx.kv import Capacity, Kv
from lightvlm_fx.methods.entry_scores.age import Age
from lightvlm_fx.schedule import Schedule

SURE = (
    "Read from the authors' code: 4 first entries and the newest stay. Ours: rotations stay absolute, where theirs count slots, and "
    "512 entries include the first ones."
)


def streaming_llm(capacity: Capacity = 512, sinks: Count = 4) -> Schedule:
    """StreamingLLM (arXiv 2309.17453): the first entries and the newest, whatever they hold. Rotations stay absolute."""
    return Schedule(name="streaming-llm", kv=Kv(capacity=capacity, score=Age(), sinks=sinks, recent=0))
