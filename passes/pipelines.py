"""The pipelines, as literal lists. One line a pass; every surprising line has its reason."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.kv_plan import KvPlan
from lightvlm_fx.pass_base import Pass
from lightvlm_fx.passes.attach_cache import AttachCache
from lightvlm_fx.passes.bound_decode import BoundDecode
from lightvlm_fx.passes.bound_prefill import BoundPrefill
from lightvlm_fx.passes.drop_export_checks import DropExportChecks
from lightvlm_fx.passes.lower_attention import LowerAttention
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passes.shift_positions import ShiftPositions
from lightvlm_fx.pipeline import Pipeline
from lightvlm_fx.schedule import Schedule


def prefill(schedule: Schedule, depth: int, removed: Sequence[int], kv: KvPlan | None = None) -> Pipeline:
    """The prefill of a model with `depth` layers, where every row loses `removed[i]` tokens at cut i."""
    cuts = zip(schedule.layers(depth), removed, schedule.cuts, strict=True)
    reduce = [ReduceTokens(layer=at, removed=n, **cut.model_dump(exclude={"layer", "keep"})) for at, n, cut in cuts]
    bound = [_bound_prefill(schedule, kv)] if kv else []
    return Pipeline(
        [
            DropExportChecks(),  # first: assertions would pin the old lengths
            *reduce,  # front to back: each reads what the one before left
            *bound,  # behind the cuts: it drops from what they left
            LowerAttention(),  # last: reduce-tokens and bound-prefill read the markers
        ]
    )


def decode(schedule: Schedule, depth: int, kv: KvPlan | None = None, *, several: bool = False) -> Pipeline:
    """One step, or (`several`) any number of new tokens, over per-stage caches."""
    layers = tuple(schedule.layers(depth))
    compact = tuple(at for at, cut in zip(layers, schedule.cuts, strict=True) if cut.positions == "compact")
    passes: list[Pass] = [DropExportChecks()]
    if compact:
        passes.append(ShiftPositions(layers=compact))  # before the caches: it counts inputs by layer
    first = next((i + 1 for i, cut in enumerate(schedule.cuts) if cut.proportional), len(layers) + 1)
    if kv is None:
        return Pipeline([*passes, AttachCache(layers=layers, biased=tuple(range(first, len(layers) + 1)))])
    counting = 0 if schedule.kv and schedule.kv.merge == "counted" else layers[first - 1] if first <= len(layers) else depth
    biased = tuple(range(counting, depth))
    return Pipeline([*passes, _bound_decode(schedule, kv, biased, several)])


def _bound_prefill(schedule: Schedule, plan: KvPlan) -> BoundPrefill:
    kv = schedule.kv
    assert kv is not None
    return BoundPrefill(
        lengths=plan.lengths, score=kv.prompt or kv.score, shared=kv.shared, sinks=kv.sinks, recent=kv.recent, window=kv.window,
        kernel=kv.kernel, of_visual=kv.of == "visual", text_first=kv.text_first, visual_share=kv.visual_share,
        budgets=str(kv.budgets) if kv.adaptive else "uniform", most=plan.most if kv.adaptive else (), alpha=kv.alpha,
        merge=kv.merge, running="" if kv.when in ("prefill", "turn") else kv.score, store=kv.when == "turn",
    )  # fmt: skip


def _bound_decode(schedule: Schedule, plan: KvPlan, biased: tuple[int, ...], several: bool) -> BoundDecode:
    kv = schedule.kv
    assert kv is not None
    return BoundDecode(
        append=kv.when != "step",
        grows=kv.when in ("prefill", "mask", "turn"),
        limit=plan.capacity if kv.when == "mask" else (),
        score=kv.score if kv.when not in ("prefill", "turn") else "age",  # behind the prompt nothing more is dropped
        question=several and kv.when == "turn",
        shared=kv.shared,
        sinks=kv.sinks, recent=kv.recent, window=kv.window, biased=biased,
    )  # fmt: skip
