"""Presets that bound the caches."""

from __future__ import annotations

from lightvlm_fx.frozen import Count, Positive
from lightvlm_fx.kv import AnyBudget, Capacity, Heads, Kv
from lightvlm_fx.methods.budgets.density import Density as DensityBudget
from lightvlm_fx.methods.budgets.entropy import Entropy
from lightvlm_fx.methods.budgets.pyramid import Pyramid
from lightvlm_fx.methods.budgets.strength import Strength
from lightvlm_fx.methods.budgets.uniform import Uniform as UniformBudget
from lightvlm_fx.methods.combines.merge import Merge
from lightvlm_fx.methods.entry_merges.counted import Counted
from lightvlm_fx.methods.entry_merges.none import NoMerge
from lightvlm_fx.methods.entry_merges.pivot import Pivot
from lightvlm_fx.methods.entry_scores.age import Age
from lightvlm_fx.methods.entry_scores.elite import Alpha, Elite
from lightvlm_fx.methods.entry_scores.marks import Marks
from lightvlm_fx.methods.entry_scores.question import Question
from lightvlm_fx.methods.entry_scores.text import Text
from lightvlm_fx.methods.entry_scores.window import Kernel, Window
from lightvlm_fx.methods.moments import Prefill, Turn
from lightvlm_fx.methods.registry import AnyCombine, AnyEntryMerge, AnyTokenScore
from lightvlm_fx.methods.token_scores.salience import Salience
from lightvlm_fx.schedule import Cut, Keep, Policy, Schedule


def streaming_llm(capacity: Capacity = 512, sinks: Count = 4) -> Schedule:
    """StreamingLLM (arXiv 2309.17453): the first entries and the newest, whatever they hold. Rotations stay absolute."""
    return Schedule(name="streaming-llm", kv=Kv(capacity=capacity, score=Age(), sinks=sinks, recent=0))


def h2o(capacity: Capacity = 512, recent: Count | None = None, sinks: Count = 0) -> Schedule:
    """H2O (arXiv 2306.14048): per KV head the entries with the largest accumulated attention, and the newest.

    `recent` is half of the capacity where not given, or 16 where the capacity is a share of the prompt.
    """
    if recent is None:
        recent = capacity // 2 if isinstance(capacity, int) else 16
    return Schedule(name="h2o", kv=Kv(capacity=capacity, recent=recent, sinks=sinks))


def scissorhands(capacity: Capacity = 512, recent: Count = 10, window: Positive = 400) -> Schedule:
    """Scissorhands (arXiv 2305.17118): drop what had less than a fair share of attention most often of late."""
    return Schedule(name="scissorhands", kv=Kv(capacity=capacity, score=Marks(window=window), recent=recent, sinks=0))


def snapkv(capacity: Capacity = 512, window: Positive = 32, kernel: Kernel = 5, budgets: AnyBudget = UniformBudget()) -> Schedule:
    """SnapKV (arXiv 2404.14469): once after the prompt, what its last queries attend to, smoothed over neighbours."""
    kv = Kv(capacity=capacity, when=Prefill(), score=Window(window=window, kernel=kernel), recent=window, sinks=0, budgets=budgets)
    return Schedule(name="snapkv", kv=kv)


def pyramidkv(capacity: Capacity = 512, window: Positive = 32, kernel: Kernel = 5) -> Schedule:
    """PyramidKV (arXiv 2406.02069): as SnapKV, with more entries in lower layers than in upper ones."""
    return Schedule(name="pyramidkv", kv=snapkv(capacity, window, kernel, Pyramid()).kv)


def vl_cache(capacity: Capacity = 0.1, recent: Count = 8, heads: Heads = "shared") -> Schedule:
    """VL-Cache (arXiv 2410.23317): scores by the text after the picture, budgets by how dense its attention is."""
    kv = Kv(capacity=capacity, when=Prefill(), score=Text(), budgets=DensityBudget(), heads=heads, recent=recent, sinks=0)
    return Schedule(name="vl-cache", kv=kv)


def look_m(capacity: Capacity = 0.2, recent: Count = 32, merge: AnyEntryMerge = Pivot()) -> Schedule:
    """LOOK-M (arXiv 2406.18139): text before pictures; values of what is dropped join survivors of their modality."""
    kv = Kv(capacity=capacity, when=Prefill(), text_first=True, merge=merge, recent=recent, sinks=0)
    return Schedule(name="look-m", kv=kv)


def meda(capacity: Capacity = 0.2, recent: Count = 32, merge: AnyEntryMerge = Pivot()) -> Schedule:
    """MEDA (arXiv 2502.17599): as LOOK-M, with more entries in layers whose attention has a higher entropy."""
    kv = Kv(capacity=capacity, when=Prefill(), text_first=True, merge=merge, recent=recent, sinks=0, budgets=Entropy())
    return Schedule(name="meda", kv=kv)


def aircache(capacity: Capacity = 0.1, alpha: Alpha = 0.9, merge: AnyEntryMerge = NoMerge()) -> Schedule:
    """AirCache (arXiv 2503.23956): `capacity` of the visual entries, by a few elite queries; all text stays."""
    kv = Kv(capacity=capacity, of="visual", when=Prefill(), score=Elite(alpha=alpha), budgets=Strength(), merge=merge, sinks=0, recent=0)
    return Schedule(name="aircache", kv=kv)


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
