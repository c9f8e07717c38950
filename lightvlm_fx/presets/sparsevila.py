"""SparseVILA (arXiv 2510.17777), as a schedule."""

from __future__ import annotations

from lightvlm_fx.kv import Capacity, Kv
from lightvlm_fx.methods.combines.merge import Merge
from lightvlm_fx.methods.entry_merges.counted import Counted
from lightvlm_fx.methods.entry_scores.question import Question
from lightvlm_fx.methods.moments import Turn
from lightvlm_fx.methods.registry import AnyCombine, AnyEntryMerge, AnyTokenScore
from lightvlm_fx.methods.token_scores.salience import Salience
from lightvlm_fx.schedule import Cut, Keep, Policy, Schedule

SURE = (
    "No code of the authors is public; from third-party notes and a third party's code: attention in the tower, the question's rows "
    "over visual keys alone, a quarter of them read, nothing dropped between turns. Ours: both stages merge, where the paper prunes; "
    "fixed shares, where its are quantiles; and 0.8 in the first stage."
)


def sparsevila(
    capacity: Capacity = 0.25, keep: Keep = 0.8, score: AnyTokenScore = Salience(), combine: AnyCombine = Merge(),
    positions: Policy = "keep", merge: AnyEntryMerge = Counted(),
) -> Schedule:  # fmt: skip
    """SparseVILA (arXiv 2510.17777): reduce at the vision output, asking no question; read at each turn what its question asks for.

    Of every picture, `keep` stays by what the vision tower attends to (`score`); at each turn, `capacity` of its tokens are read, and
    nothing is lost between turns. The paper prunes and renumbers (combine="prune", positions="compact") and leaves out what is not
    read (merge="none"); the default merges in both stages, so that what nobody asked for still counts (docs/kv.md).
    """
    kv = Kv(capacity=capacity, of="visual", when=Turn(), score=Question(), merge=merge, sinks=0, recent=0)
    cut = Cut(layer=0, keep=keep, score=score, combine=combine, positions=positions, proportional=combine.counts)
    cuts = () if cut.keep == 1.0 and isinstance(cut.keep, float) else (cut,)  # a count of 1 is a single token
    return Schedule(name="sparsevila", cuts=cuts, kv=kv)
