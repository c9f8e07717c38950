"""The catalogue: every pass once, by name. Adding a pass: docs/add-a-pass.md."""

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

CATALOGUE: dict[str, type[Pass]] = {
    p.name: p
    for p in (DropExportChecks, ReduceTokens, BoundPrefill, FreezeTokens, LowerAttention, ShareSoftmax, ShiftPositions, AttachCache,
              BoundDecode)
}
# One example of each, for the contract tests.
EXAMPLES: tuple[Pass, ...] = (
    DropExportChecks(),
    ReduceTokens(layer=1),
    ReduceTokens(layer=2, score="peak", combine="merge"),
    ReduceTokens(layer=0, score="salience", positions="compact"),
    ReduceTokens(layer=0, score="density", combine="merge", proportional=True),
    ReduceTokens(layer=2, score="received", combine="recover", positions="compact"),
    BoundPrefill(sizes=(0, 1, 2, 3), sinks=1, recent=2, running="attention"),
    BoundPrefill(sizes=(0, 0, 0, 0), score="text", shared=True, sinks=0, recent=1, budgets="density", merge="pivot"),
    BoundPrefill(sizes=(0, 0, 1, 1), score="density", shared=True, sinks=1, recent=2, visual_share=0.5, merge="counted", running="marks"),
    FreezeTokens(layers=(1, 3)),
    LowerAttention(),
    ShareSoftmax(),
    ShiftPositions(layers=(1, 2)),
    AttachCache(layers=(1, 2)),
    BoundDecode(),
)
