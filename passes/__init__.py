"""The catalogue: every pass once, by name. Adding a pass: docs/add-a-pass.md."""

from lightvlm_fx.pass_base import Pass
from lightvlm_fx.passes.attach_cache import AttachCache
from lightvlm_fx.passes.drop_export_checks import DropExportChecks
from lightvlm_fx.passes.lower_attention import LowerAttention
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passes.shift_positions import ShiftPositions

CATALOGUE: dict[str, type[Pass]] = {
    p.name: p for p in (DropExportChecks, ReduceTokens, LowerAttention, ShiftPositions, AttachCache)
}
# One example of each, for the contract tests.
EXAMPLES: tuple[Pass, ...] = (
    DropExportChecks(),
    ReduceTokens(layer=1, removed=4),
    ReduceTokens(layer=2, removed=4, score="peak", combine="merge"),
    ReduceTokens(layer=2, removed=4, score="received", combine="recover", positions="compact"),
    LowerAttention(),
    ShiftPositions(layers=(1, 2)),
    AttachCache(layers=(1, 2)),
)
