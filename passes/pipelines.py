"""The pipelines, as literal lists. One line a pass; every surprising line has its reason."""

from __future__ import annotations

from lightvlm_fx.kv import Kv
from lightvlm_fx.methods.budgets.uniform import Uniform
from lightvlm_fx.methods.entry_scores.age import Age
from lightvlm_fx.methods.entry_scores.attention import Attention
from lightvlm_fx.passes.attach_cache import AttachCache
from lightvlm_fx.passes.bound_decode import BoundDecode
from lightvlm_fx.passes.bound_prefill import BoundPrefill
from lightvlm_fx.passes.drop_export_checks import DropExportChecks
from lightvlm_fx.passes.freeze_tokens import FreezeTokens
from lightvlm_fx.passes.lower_attention import LowerAttention
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passes.share_softmax import ShareSoftmax
from lightvlm_fx.passes.shift_positions import ShiftPositions
from lightvlm_fx.passing.pass_base import Pass
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.schedule import Schedule, shared_sizes


def effective(schedule: Schedule, planes: int) -> Schedule:
    """`schedule` for a model of so many `planes` of M-RoPE positions (0: plain ones): what positions="input" means for it, and no cuts that
    remove nothing whatever the picture, which would leave nodes that do nothing.
    """
    as_input = {"positions": "keep" if planes else "compact"}
    cuts = [cut.model_copy(update=as_input) if cut.positions == "input" else cut for cut in schedule.cuts]
    if whole := schedule.downsample == 1.0:
        cuts = cuts[1:]
    left = tuple(cut for cut in cuts if cut.keep != 1.0 or isinstance(cut.keep, int))
    tower, smaller = tuple(cut for cut in schedule.tower if cut.keep != 1.0), None if whole else schedule.downsample
    return schedule.unchecked(cuts=left, tower=tower, downsample=smaller)


def prefill(schedule: Schedule, depth: int, exported: bool = False) -> Pipeline:
    """The prefill of a model with `depth` layers; `exported`: for a target that has operators of a standard alone."""
    cuts = zip(schedule.layers(depth), schedule.cuts, strict=True)
    reduce = [ReduceTokens(at, cut.score, cut.combine, cut.positions, cut.proportional) for at, cut in cuts]
    bound = [_bound_prefill(schedule, depth)] if schedule.kv else []
    share = [ShareSoftmax()] if not exported and any(Attention() in (step.score, step.running) for step in bound) else []
    freeze = [FreezeTokens(schedule.frozen(depth))] if schedule.freeze else []
    return Pipeline(
        [
            DropExportChecks(),  # first: assertions would pin the old lengths
            *reduce,  # front to back: each reads what the one before left
            *bound,  # after the cuts: it drops from what they left
            *freeze,  # after all that reads queries: those of visual tokens leave
            LowerAttention(),  # after those: reduce-tokens and bound-prefill read the markers
            *share,  # last: it reads what became of the markers; exports do the same by blocks, in lightvlm_fx/exporting/causal.py
        ]
    )


def decode(schedule: Schedule, depth: int, *, several: bool = False, capacity: int = 0) -> Pipeline:
    """One step, or (`several`) any number of new tokens, over caches by span of layers; of `capacity` slots where that is a number."""
    layers = tuple(schedule.layers(depth))
    compact = tuple(at for at, cut in zip(layers, schedule.cuts, strict=True) if cut.positions == "compact")
    passes: list[Pass] = [DropExportChecks()]
    if compact:
        passes.append(ShiftPositions(layers=compact))  # before the caches: it counts inputs by layer
    first = next((i + 1 for i, cut in enumerate(schedule.cuts) if cut.proportional), len(layers) + 1)
    if schedule.kv is None:
        return Pipeline([*passes, AttachCache(layers=layers, biased=tuple(range(first, len(layers) + 1)))])
    counting = 0 if schedule.kv.merge.counts else layers[first - 1] if first <= len(layers) else depth
    biased = tuple(range(counting, depth))
    return Pipeline([*passes, _bound_decode(schedule.kv, biased, several, capacity)])


def _bound_prefill(schedule: Schedule, depth: int) -> BoundPrefill:
    kv = schedule.kv
    assert kv is not None
    return BoundPrefill(
        sizes=shared_sizes(schedule, depth), score=kv.prompt or kv.score, shared=kv.shared, layers=kv.layers,
        sinks=kv.sinks, recent=kv.recent, of_visual=kv.of == "visual", text_first=kv.text_first, visual_share=kv.visual_share,
        budgets=kv.budgets if kv.adaptive else Uniform(), merge=kv.merge,
        running=kv.score if kv.when.stepping else None, store=kv.when.by_turn,
    )  # fmt: skip


def _bound_decode(kv: Kv, biased: tuple[int, ...], several: bool, capacity: int) -> BoundDecode:
    return BoundDecode(
        append=not kv.when.overwrites,
        capacity=capacity,
        limited=kv.when.masks,
        score=kv.score if kv.when.stepping else Age(),  # else after the prompt nothing more is dropped
        question=kv.score if several and kv.when.by_turn else None,
        shared=kv.shared,
        sinks=kv.sinks, recent=kv.recent, biased=biased,
    )  # fmt: skip
