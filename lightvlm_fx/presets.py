"""Published methods and baselines as schedules. A preset is a function from named options to a Schedule.

The exact recipe of LightVLM is not public: `lightvlm` is a reconstruction whose every unknown is an option.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence

from pydantic import ValidationError, validate_call

from lightvlm_fx.errors import ScheduleError, UnknownName, shown
from lightvlm_fx.frozen import STRICT, Count, Positive, readable
from lightvlm_fx.kv import AnyBudget, Capacity, Heads, Kv, VisualShare
from lightvlm_fx.methods.budgets.density import Density as DensityBudget
from lightvlm_fx.methods.budgets.entropy import Entropy
from lightvlm_fx.methods.budgets.pyramid import Pyramid
from lightvlm_fx.methods.budgets.strength import Strength
from lightvlm_fx.methods.budgets.uniform import Uniform as UniformBudget
from lightvlm_fx.methods.combines.absorb import Absorb
from lightvlm_fx.methods.combines.contextual import Contextual
from lightvlm_fx.methods.combines.earlier_frame import EarlierFrame
from lightvlm_fx.methods.combines.fold import Fold as FoldedMean
from lightvlm_fx.methods.combines.low_pass import LowPass
from lightvlm_fx.methods.combines.merge import Merge
from lightvlm_fx.methods.combines.neighbours import Neighbours
from lightvlm_fx.methods.combines.pool import Pool
from lightvlm_fx.methods.combines.prune import Prune
from lightvlm_fx.methods.combines.recover import Centres
from lightvlm_fx.methods.counts.frame_groups import FrameGroups
from lightvlm_fx.methods.counts.grid_and_share import GridAndShare
from lightvlm_fx.methods.counts.lattice import Lattice as SmallGrid
from lightvlm_fx.methods.counts.share_of_arriving import ShareOfArriving
from lightvlm_fx.methods.counts.share_of_video import ShareOfVideo
from lightvlm_fx.methods.counts.shared_total import SharedTotal
from lightvlm_fx.methods.entry_merges.counted import Counted
from lightvlm_fx.methods.entry_merges.none import NoMerge
from lightvlm_fx.methods.entry_merges.pivot import Pivot
from lightvlm_fx.methods.entry_scores.age import Age
from lightvlm_fx.methods.entry_scores.attention import Attention
from lightvlm_fx.methods.entry_scores.density import Density as EntryDensity
from lightvlm_fx.methods.entry_scores.elite import Alpha, Elite
from lightvlm_fx.methods.entry_scores.marks import Marks
from lightvlm_fx.methods.entry_scores.question import Question
from lightvlm_fx.methods.entry_scores.text import Text
from lightvlm_fx.methods.entry_scores.window import Kernel, Window
from lightvlm_fx.methods.moments import Prefill, Step, Turn
from lightvlm_fx.methods.options import Part, Power, Share
from lightvlm_fx.methods.registry import AnyCombine, AnyEntryMerge, AnyEntryScore, AnyMoment, AnyTokenScore
from lightvlm_fx.methods.token_scores.density import Density
from lightvlm_fx.methods.token_scores.determinant import Determinant
from lightvlm_fx.methods.token_scores.even_then_salient import EvenThenSalient
from lightvlm_fx.methods.token_scores.far_apart import FarApart
from lightvlm_fx.methods.token_scores.fold import Fold
from lightvlm_fx.methods.token_scores.frame_change import FrameChange
from lightvlm_fx.methods.token_scores.grid_last_query import GridLastQuery
from lightvlm_fx.methods.token_scores.group_change import GroupChange
from lightvlm_fx.methods.token_scores.last_query import LastQuery
from lightvlm_fx.methods.token_scores.lattice import Lattice
from lightvlm_fx.methods.token_scores.log_sum_exp import LogSumExp
from lightvlm_fx.methods.token_scores.random import Random, Seed
from lightvlm_fx.methods.token_scores.raters import Raters
from lightvlm_fx.methods.token_scores.salience import Salience
from lightvlm_fx.methods.token_scores.salient_far_apart import SalientFarApart
from lightvlm_fx.methods.token_scores.salient_then_even import SalientThenEven
from lightvlm_fx.methods.token_scores.uniform import Uniform
from lightvlm_fx.methods.token_scores.unlike_pivots import UnlikePivots
from lightvlm_fx.methods.token_scores.variation import Variation
from lightvlm_fx.methods.token_scores.visual_heads import VisualHeads
from lightvlm_fx.methods.token_scores.weighted_heads import WeightedHeads, Weights
from lightvlm_fx.schedule import Cut, Keep, KeepOrCount, Layer, Policy, Schedule

# Shares of the depth before which the pyramid merges; chosen on the bundled model (docs/benchmarks.md).
STAGES = (0.25, 0.625, 0.875)
EQUAL_STAGES = (0.25, 0.5, 0.75)


def _pyramid(name: str, keep: Keep, layers: Sequence[Layer], **options: object) -> Schedule:
    """Equal stages: stage s of n leaves keep^(s/n) of an image (a count: the same fall from its size)."""
    n = len(layers)
    if not n:
        raise ScheduleError("layers must name at least one layer, got none")
    if isinstance(keep, float):
        kept: list[float | int] = [keep ** ((s + 1) / n) for s in range(n - 1)] + [keep]
    elif n == 1:
        kept = [keep]
    else:
        raise ScheduleError(f"{name}: keep as a count needs a single layer (layers=(k,)), got layers={tuple(layers)}")
    cuts = tuple(Cut(layer=at, keep=k, **options) for at, k in zip(layers, kept, strict=True))
    return Schedule(name=name, cuts=cuts)


def _stages(name: str, layers: Sequence[Layer], keep: Sequence[Keep], **options: object) -> Schedule:
    """A cut before each of `layers`, which leaves its entry of `keep`."""
    if len(keep) != len(layers):
        raise ScheduleError(f"{name}: keep has {len(keep)} stages and layers {len(layers)}; give one each")
    return Schedule(name=name, cuts=tuple(Cut(layer=at, keep=k, **options) for at, k in zip(layers, keep, strict=True)))


def lightvlm(
    keep: Keep = 0.35,
    layers: Sequence[Layer] = STAGES,
    score: AnyTokenScore = Density(power=0.5),
    combine: AnyCombine = Merge(),
    positions: Policy = "keep",
    rope: bool | None = None,
    power: Power | None = None,
    centres: Centres | None = None,
    group: Positive | None = None,
    proportional: bool | None = None,
    capacity: Capacity | None = None,
    when: AnyMoment | None = None,
    kv_score: AnyEntryScore = Attention(),
    kv_merge: AnyEntryMerge = Counted(),
    heads: Heads = "shared",
    sinks: Count | None = None,
    recent: Count | None = None,
    visual_share: VisualShare = 0.3,
) -> Schedule:
    """LightVLM (arXiv 2509.00419), reconstructed: pyramid token merging over the decoder's layers, and a bounded cache.

    With `capacity` as a ratio, the prompt's visual entries are merged into that share of the prompt, once (`when="prefill"`);
    as a count, every layer's cache holds that many entries for the whole answer (`when="step"`): the picture, merged into
    `visual_share` of them, and of the text 4 sinks, the newest half, and what was attended to most (`kv_score`).
    `rope`, `power`, `centres` and `group` are options of `score` and `combine`; `power` is 0.5 where neither says otherwise.
    """
    if power is None and "power" in set(type(score).model_fields) - score.model_fields_set:
        power = 0.5
    options = {"rope": rope, "power": power, "centres": centres, "group": group}
    pyramid = _pyramid(
        "lightvlm",
        keep,
        layers,
        score=score,
        combine=combine,
        positions=positions,
        proportional=combine.counts if proportional is None else proportional,
        **{name: value for name, value in options.items() if value is not None},
    )
    stepping = {"kv_score": kv_score != Attention(), "visual_share": visual_share != 0.3}
    given = {"when": when, "sinks": sinks, "recent": recent}
    others = {"kv_merge": kv_merge != Counted(), "heads": heads != "shared"}
    if capacity is None:
        cache = [name for name, value in given.items() if value is not None] + [n for n, differs in (stepping | others).items() if differs]
        if cache:
            raise ScheduleError(f"lightvlm: {', '.join(cache)} without capacity has no cache to bound; give capacity= a count or a share")
        return pyramid
    if when is None:
        when = Prefill() if isinstance(capacity, float) else Step()
    if not when.stepping:
        idle = [name for name, differs in stepping.items() if differs]
        if idle:
            raise ScheduleError(f"lightvlm: {', '.join(idle)} says how a cache goes on step by step, but when='prefill' chooses once; "
                                "leave it out, or give capacity as a count, or when='step'")  # fmt: skip
        kv = Kv(capacity=capacity, when=when, score=EntryDensity(), merge=kv_merge, heads=heads, text_first=True,
                sinks=1 if sinks is None else sinks, recent=1 if recent is None else recent)  # fmt: skip
    else:
        if recent is None:
            recent = int(capacity * (1 - visual_share) / 2) if isinstance(capacity, int) else 16
        kv = Kv(capacity=capacity, when=when, score=kv_score, prompt=EntryDensity(), merge=kv_merge, heads=heads,
                sinks=4 if sinks is None else sinks, recent=recent, visual_share=visual_share)  # fmt: skip
    return Schedule(name="lightvlm", cuts=pyramid.cuts, kv=kv)


def fastv(keep: Keep = 0.5, layer: Layer = 2, rope: bool = True) -> Schedule:
    """FastV (arXiv 2403.06764): after layer 2, keep the tokens the last prompt token attends to most."""
    return Schedule(name="fastv", cuts=(Cut(layer=layer, keep=keep, score=LastQuery(rope=rope)),))


def pyramiddrop(
    keep: Sequence[Keep] = (0.5, 0.25, 0.125),
    layers: Sequence[Layer] = EQUAL_STAGES,
    positions: Policy = "compact",
    ahead: bool = False,
) -> Schedule:
    """PyramidDrop (arXiv 2410.17247): geometric drops at equal stages, survivors renumbered.

    The original ranks with the projections of the layer after the cut: `ahead=True`. The default takes the attention of the layer
    before, which has been computed.
    """
    return _stages("pyramiddrop", layers, keep, score=LastQuery(ahead=ahead), positions=positions)


# LLaVA-1.5-7B's 19 of 32 layers (the paper's repository); of other models the same shares of the depth.
UNCHANGED = (0.001, *(layer / 32 for layer in (2, 3, 12, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31)))


def shortv(layers: Sequence[Layer] = UNCHANGED) -> Schedule:
    """ShortV (arXiv 2504.00502): in `layers` visual tokens keep their hidden state; queries, output and MLP run for text alone.

    Which layers change visual tokens least is a matter of each model: the default is LLaVA-1.5-7B's, by share of the depth. On Qwen
    models freezing can break answers (arXiv 2604.16462): compare with `lightvlm eval` before relying on it.
    """
    if not layers:
        raise ScheduleError("shortv: layers must name at least one layer, got none")
    return Schedule(name="shortv", freeze=tuple(sorted(layers)))


def divprune(keep: Keep = 0.1, layer: Layer = 0, positions: Policy = "input") -> Schedule:
    """DivPrune (arXiv 2503.02175): before the decoder, the tokens that are least alike, picked one by one.

    The source picks over what the projector gives, and answers as if the prompt had been that short.
    """
    return Schedule(name="divprune", cuts=(Cut(layer=layer, keep=keep, score=FarApart(), positions=positions),))


def _before(name: str, keep: KeepOrCount, score: AnyTokenScore, combine: AnyCombine = Prune(), positions: Policy = "input") -> Schedule:
    """One cut of what the projector gives, after which the model answers as if the prompt had been that short."""
    return Schedule(name=name, cuts=(Cut(layer=0, keep=keep, score=score, combine=combine, positions=positions),))


def visionzip(dominant: Keep = 0.25, contextual: Keep = 0.05, positions: Policy = "input") -> Schedule:
    """VisionZip (arXiv 2412.04467): what the vision tower attends to most, and evenly spaced others that take up what is dropped.

    Two shares of the picture or two counts; the paper's 64 tokens are dominant=54 (CLS among them, which we have not), contextual=10.
    """
    if type(dominant) is not type(contextual):
        raise ScheduleError(f"visionzip: dominant and contextual must be two shares or two counts, got {dominant} and {contextual}")
    if isinstance(dominant, float) and dominant + contextual > 1:
        raise ScheduleError(f"visionzip: dominant + contextual must be at most 1.0, the whole picture, got {dominant} + {contextual}")
    share = contextual / (dominant + contextual)
    return _before("visionzip", dominant + contextual, SalientThenEven(even=share), Contextual(share=share), positions)


def prumerge(keep: Keep = 0.125, group: Positive = 32, extra: bool = True, positions: Policy = "input") -> Schedule:
    """PruMerge (arXiv 2403.15388), with a fixed count: what the vision tower attends to most, each with its neighbours added.

    The paper's count is that of each picture's outliers, which no graph of a fixed size can have; 1/8 is its repository's fixed ratio.
    """
    return _before("prumerge", keep, Salience(), Neighbours(group=group, extra=extra), positions)


def prumerge_plus(
    keep: Keep = 0.25, even: Part = 0.5, group: Positive = 32, extra: bool = True, positions: Policy = "input"
) -> Schedule:
    """PruMerge+ (arXiv 2403.15388), with a fixed count: as `prumerge`, and `even` of what stays is spread evenly over the picture."""
    return _before("prumerge+", keep, EvenThenSalient(even=even), Neighbours(group=group, extra=extra), positions)


def score(keep: Keep = 0.22, power: Power = 0.8, positions: Policy = "input") -> Schedule:
    """SCoRe (CVPR 2026, by a third-party note): as DivPrune (arXiv 2503.02175), distances weighed by what the vision tower attends to."""
    return _before("score", keep, SalientFarApart(power=power), positions=positions)


def folder(keep: Keep = 1 / 3, louder: bool = True, positions: Policy = "input") -> Schedule:
    """FOLDER (arXiv 2501.02430), its simple version: what the projector gives is merged in pairs, again and again, down to `keep`.

    The full version does so inside the vision tower.
    """
    folds = math.ceil(-math.log2(keep)) + 1 if isinstance(keep, float) else 16  # as many as any picture's rounding can need
    return _before("folder", keep, Fold(folds=folds), FoldedMean(louder=louder), positions)


def cdpruner(keep: Keep = 0.1, negated: bool = True, positions: Policy = "input") -> Schedule:
    """CDPruner (arXiv 2506.10967): tokens relevant to the question and unlike each other, by a determinantal point process.

    Relevance is of the question's embeddings: these models have no text tower, which the paper's is of.
    """
    return _before("cdpruner", keep, Determinant(negated=negated), positions=positions)


def feather(layers: Sequence[Layer] = (0.25, 0.5), keep: Share = 0.3, stride: Positive = 3) -> Schedule:
    """FEATHER (arXiv 2412.13180): what the last prompt token attends to, scored without RoPE, and a grid of the picture; twice.

    Before the first layer of `layers`, every `stride`-th row and column stay, and int(keep * tokens) of the others; before the second,
    int(keep^2 * those that arrive) by the score alone. The paper's layers are 8 and 16 of 32.
    """
    if len(layers) != 2:
        raise ScheduleError(f"feather: layers must name two layers, got {tuple(layers)}")
    first = Cut(layer=layers[0], keep=GridAndShare(stride=stride, share=keep), score=GridLastQuery(stride=stride))
    second = Cut(layer=layers[1], keep=ShareOfArriving(share=keep**2), score=LastQuery(rope=False, image_softmax=True))
    return Schedule(name="feather", cuts=(first, second))


def fourier(side: Share = 2 / 3, positions: Policy = "input") -> Schedule:
    """Fourier-VLM (arXiv 2508.06038): before the decoder, the picture's low frequencies on a grid of `side` times its rows and columns.

    The source trains the model with it; without training its quality is unknown.
    """
    return _before("fourier", SmallGrid(side=side), Lattice(), LowPass(), positions)


def pool(side: Share = 0.5, positions: Policy = "input") -> Schedule:
    """Baseline: average pooling before the decoder, to `side` times the picture's rows and columns."""
    return _before("pool", SmallGrid(side=side), Lattice(), Pool(), positions)


def dynamic_vlm(tokens: Positive = 2048, most: Positive = 144, positions: Policy = "input") -> Schedule:
    """Dynamic-VLM (arXiv 2412.09530): average pooling before the decoder; frames share `tokens`, and each has `most` at most.

    Pictures side by side share them too. The source trains the model with it.
    """
    return _before("dynamic-vlm", SharedTotal(total=tokens, most=most), Lattice(), Pool(), positions)


def dycoke(keep: Share = 0.3, positions: Policy = "input") -> Schedule:
    """DyCoke (arXiv 2411.15024), its temporal half: of every fourth frame all, of the others `keep`, what changed most.

    Still pictures stay whole. Left out: the cache entries that the source chooses anew while decoding.
    """
    return _before("dycoke", FrameGroups(share=keep), GroupChange(), positions=positions)


def framefusion(keep: Share = 0.3) -> Schedule:
    """FrameFusion (arXiv 2501.01986), its merges: before the decoder, what changed least from frame to frame joins the frame before.

    As the source where so much is alike by a cosine of 0.6; else it merges less there, goes on behind the first layers and prunes the
    rest by attention, which depends on the video. Still pictures stay whole.
    """
    cut = Cut(layer=0, keep=ShareOfVideo(share=keep), score=FrameChange(), combine=EarlierFrame())
    return Schedule(name="framefusion", cuts=(cut,))


def dart(keep: Keep = 0.222, layer: Layer = 5 / 32) -> Schedule:
    """DART (arXiv 2502.11494): before one early layer, pivots by the norm of their keys and the tokens that are least like them.

    The paper's layer is 5 of 32, and a reduction of 0.778 is its usual one; there int(tokens * 0.222 / 8) join each of 8 pivots, 4 of
    which are text: a count of 4 + 8 * n is exactly that.
    """
    return Schedule(name="dart", cuts=(Cut(layer=layer, keep=keep, score=UnlikePivots()),))


def illava(
    keep: Keep = 0.85**4,
    layers: Sequence[Layer] = (15 / 36, 17 / 36, 19 / 36, 21 / 36),
    centres: Centres = 0.05,
    group: Positive = 5,
) -> Schedule:
    """The decoder's part of iLLaVA (arXiv 2412.06263), its code of 2026: by log-sum-exp; a few centres absorb what is most like them.

    Every cut leaves the same share of what arrives: 0.85 at layers 15, 17, 19 and 21 of Qwen3-VL's 36; decoders of fewer than 19 layers
    need `layers`. Its cuts in the vision tower are not rebuilt.
    """
    return _pyramid("illava", keep, layers, score=LogSumExp(), combine=Absorb(centres=centres, group=group))


def v2drop(keep: Sequence[Keep] = (0.5, 0.25, 1), layers: Sequence[Layer] = (3 / 32, 16 / 32, 22 / 32)) -> Schedule:
    """V2Drop (arXiv 2509.01552): three times, the tokens that the layer before changed most; one a picture at last.

    The paper's layers are 3, 16 and 22 of 32; its code for LLaVA-1.5 has 17 in the place of 16.
    """
    return _stages("v2drop", layers, keep, score=Variation())


def sparsevlm(
    keep: Sequence[Keep] = (300 / 576, 200 / 576, 110 / 576),
    layers: Sequence[Layer] = (3 / 32, 7 / 32, 16 / 32),
    positions: Policy = "compact",
) -> Schedule:
    """SparseVLM (arXiv 2410.04417), the static budgets of its code's version 1.5: what relevant words of the question attend to.

    After layers 2, 6 and 15 of 32, 300, 200 and 110 of 576 tokens: 192 on average. What is pruned is not recycled into clusters, which
    stand behind the picture there. Version 2.0 keeps positions (positions="keep"), which models with M-RoPE need.
    """
    return _stages("sparsevlm", layers, keep, score=Raters(), positions=positions)


def hawk(keep: Keep = 0.2, layer: Layer = 0, weights: Weights = ()) -> Schedule:
    """HAWK (arXiv 2604.07812): before the decoder, what the text asks for by its first layer's projections, without RoPE.

    `weights` says what each head is worth, which the paper measures for each model; without, all are worth the same.
    """
    return Schedule(name="hawk", cuts=(Cut(layer=layer, keep=keep, score=WeightedHeads(weights=weights)),))


def meteor(keep: Keep = 0.25, layer: Layer = 0.25, heads: Positive = 8) -> Schedule:
    """METEOR (arXiv 2507.20842), the third of its stages: the attention of the `heads` that look at the picture most.

    The first two prune inside and across vision towers that are trained for it. Layer, heads and share are not public: these are ours,
    and the share is a ceiling, where the paper's follows what those heads pay the picture.
    """
    return Schedule(name="meteor", cuts=(Cut(layer=layer, keep=keep, score=VisualHeads(heads=heads)),))


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


def random(
    keep: Keep = 0.35, layers: Sequence[Layer] = STAGES, combine: AnyCombine = Prune(), seed: Seed = 0
) -> Schedule:
    """Baseline: random tokens, at the layers and counts of `lightvlm` for the same keep."""
    return _pyramid("random", keep, layers, score=Random(seed=seed), combine=combine)


def uniform(keep: Keep = 0.35, layers: Sequence[Layer] = STAGES, combine: AnyCombine = Prune()) -> Schedule:
    """Baseline: evenly spaced tokens, at the layers and counts of `lightvlm` for the same keep."""
    return _pyramid("uniform", keep, layers, score=Uniform(), combine=combine)


def none() -> Schedule:
    """No reduction: the full model through the same capture and compiler, the honest baseline for speed."""
    return Schedule(name="none")


PRESETS: dict[str, Callable[..., Schedule]] = {
    f.__name__.replace("_plus", "+").replace("_", "-"): f
    for f in (
        lightvlm, fastv, pyramiddrop, feather, shortv, divprune,
        visionzip, prumerge, prumerge_plus, score, folder, cdpruner,
        fourier, pool, dynamic_vlm, dycoke, framefusion,
        dart, illava, v2drop, sparsevlm, hawk, meteor,
        streaming_llm, h2o, scissorhands, snapkv, pyramidkv, vl_cache, look_m, meda, aircache,
        sparsevila, random, uniform, none,
    )
}


@functools.cache
def _checked(name: str) -> Callable[..., Schedule]:
    """The preset `name`, whose options must be of the types that it is written with."""
    return validate_call(config=STRICT)(PRESETS[name])


def make(name: str, /, **options: object) -> Schedule:
    """The preset `name` with `options`. Raises UnknownName for either, ScheduleError for a bad value."""
    if not isinstance(name, str) or name not in PRESETS:
        raise UnknownName.of("preset", name, PRESETS)
    known = inspect.signature(PRESETS[name]).parameters
    for option, value in options.items():
        if option not in known:
            raise UnknownName.of(f"option of preset {name!r}", option, known)
        usual = known[option].default
        if isinstance(usual, tuple) and not isinstance(value, tuple | list):
            raise ScheduleError(f"{name}: {option} must be a list such as {list(usual)}, got {shown(value)}")
    try:
        return _checked(name)(**options)
    except ValidationError as error:
        raise readable(error, f"a valid option of preset {name!r}", list(known)) from None
