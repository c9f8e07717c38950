"""The pipelines, as literal lists. One line a pass; every surprising line has its reason."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.pass_base import Pass
from lightvlm_fx.passes.attach_cache import AttachCache
from lightvlm_fx.passes.drop_export_checks import DropExportChecks
from lightvlm_fx.passes.lower_attention import LowerAttention
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passes.shift_positions import ShiftPositions
from lightvlm_fx.pipeline import Pipeline
from lightvlm_fx.schedule import Schedule


def prefill(schedule: Schedule, depth: int, removed: Sequence[int]) -> Pipeline:
    """The prefill of a model with `depth` layers, where every row loses `removed[i]` tokens at cut i."""
    cuts = zip(schedule.layers(depth), removed, schedule.cuts, strict=True)
    reduce = [ReduceTokens(layer=at, removed=n, **cut.model_dump(exclude={"layer", "keep"})) for at, n, cut in cuts]
    return Pipeline(
        [
            DropExportChecks(),  # first: assertions would pin the old lengths
            *reduce,  # front to back: each reads what the one before left
            LowerAttention(),  # last: reduce-tokens reads the markers
        ]
    )


def decode(schedule: Schedule, depth: int) -> Pipeline:
    """One step, or several new tokens, over per-stage caches."""
    layers = tuple(schedule.layers(depth))
    compact = tuple(at for at, cut in zip(layers, schedule.cuts, strict=True) if cut.positions == "compact")
    passes: list[Pass] = [DropExportChecks()]
    if compact:
        passes.append(ShiftPositions(layers=compact))  # before attach-cache: it counts inputs by layer
    first = next((i + 1 for i, cut in enumerate(schedule.cuts) if cut.proportional), len(layers) + 1)
    return Pipeline([*passes, AttachCache(layers=layers, biased=tuple(range(first, len(layers) + 1)))])
