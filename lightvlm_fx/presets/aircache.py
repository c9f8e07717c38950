"""AirCache (arXiv 2503.23956), as a schedule."""

from __future__ import annotations

from lightvlm_fx.kv import Capacity, Kv
from lightvlm_fx.methods.budgets.strength import Strength
from lightvlm_fx.methods.entry_merges.none import NoMerge
from lightvlm_fx.methods.entry_scores.elite import Alpha, Elite
from lightvlm_fx.methods.moments import Prefill
from lightvlm_fx.methods.registry import AnyEntryMerge
from lightvlm_fx.schedule import Schedule

SURE = (
    "No code is public; from third-party notes of the paper: elite queries at 0.9, strength and skewness of each layer, all text "
    "stays. Ours: heads averaged, elite queries from the text after the picture alone, both statistics divided by their mean over the "
    "layers."
)


def aircache(capacity: Capacity = 0.1, alpha: Alpha = 0.9, merge: AnyEntryMerge = NoMerge()) -> Schedule:
    """AirCache (arXiv 2503.23956): `capacity` of the visual entries, by a few elite queries; all text stays."""
    kv = Kv(capacity=capacity, of="visual", when=Prefill(), score=Elite(alpha=alpha), budgets=Strength(), merge=merge, sinks=0, recent=0)
    return Schedule(name="aircache", kv=kv)
