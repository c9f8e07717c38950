"""Remove what torch.export leaves behind for checking only."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightvlm_fx.compat import ASSERT_METADATA, ASSERT_SCALAR
from lightvlm_fx.errors import PostconditionError
from lightvlm_fx.graph.program import Program, value
from lightvlm_fx.passing.pass_base import Pass, PassResult

CHECKS = (ASSERT_METADATA, ASSERT_SCALAR)
SAME = (
    torch.ops.aten.detach.default,
    torch.ops.aten.alias.default,
    torch.ops.aten.to.dtype,
    torch.ops.aten.to.device,
    torch.ops.aten.to.dtype_layout,
    torch.ops.aten.dropout.default,
)


@dataclass(frozen=True)
class DropExportChecks(Pass):
    """Drop assertions, and casts, detaches and dropouts that change nothing.

    Before:    aten._assert_tensor_metadata(x); y = aten.to(x, same dtype)
    After:     users of y read x
    Ensures:   no assertion is left.
    Source:    ours.
    """

    name = "drop-export-checks"
    stages = ("vision", "prefill", "decode")

    def requires(self, program: Program) -> None:
        pass

    def call(self, program: Program) -> PassResult:
        matched = 0
        for node in list(program.graph.nodes):
            if node.target in CHECKS:
                program.graph.erase_node(node)
                matched += 1
            elif node.target in SAME and _changes_nothing(node):
                node.replace_all_uses_with(node.args[0])
                program.graph.erase_node(node)
                matched += 1
        return PassResult(matched, matched, "" if matched else "the graph has none")

    def ensures(self, program: Program) -> None:
        left = [n.name for n in program.graph.nodes if n.target in CHECKS]
        if left:
            raise PostconditionError(f"{self}: checks left in the graph: {', '.join(left)}")


def _changes_nothing(node: torch.fx.Node) -> bool:
    if node.target is torch.ops.aten.dropout.default:
        return node.args[2] is False
    before, after = value(node.args[0]), value(node)
    return before.dtype == after.dtype and before.device == after.device
