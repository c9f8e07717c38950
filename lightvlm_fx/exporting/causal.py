"""Scores that apply the causal rule themselves, where an explicit mask says nothing more."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from lightvlm_fx.errors import CaptureError
from lightvlm_fx.exporters.prompt import MaskRule
from lightvlm_fx.program import Program

OPS = torch.ops.lightvlm
SCORES = (OPS.score_received.default, OPS.score_text_mean.default, OPS.kv_score_rows.default)
MASK = 3  # which argument of theirs
DERIVED = (OPS.take_tokens.default, OPS.mask_out.default, OPS.key_bias.default)  # of a mask: the same rule for the tokens that are left


def scores_without_masks(program: Program, given: dict[str, Tensor], segment: Tensor) -> int:
    """Take causal masks off the scores of `program`: without one, a score leaves out the keys behind its rows, half of them.

    What a mask says is read off its values on an example, `given` by the names of the inputs; segment [B, S] is the example's.
    Returns how many scores were changed.
    """
    changed, causal = 0, dict[fx.Node, bool]()
    for node in program.graph_module.graph.nodes:
        if node.target not in SCORES or not isinstance(node.args[MASK], fx.Node):
            continue
        source = node.args[MASK]
        while source.target in DERIVED:
            source = source.args[0]
        if source not in causal:
            causal[source] = _is_causal(_compute(source, given, {}), segment)
        if causal[source]:
            node.update_arg(MASK, None)
            changed += 1
    program.graph_module.recompile()
    return changed


def _is_causal(mask: Tensor, segment: Tensor) -> bool:
    try:
        return MaskRule.of("mask", mask, segment, None) == MaskRule()
    except CaptureError:
        return False


def _compute(node: fx.Node, given: dict[str, Tensor], known: dict[fx.Node, Any]) -> Any:
    """The value of `node`, from the inputs that it hangs on."""
    if node not in known:
        if node.op == "placeholder":
            known[node] = given[str(node.target)]
        elif node.op == "get_attr":
            known[node] = attrgetter(str(node.target))(node.graph.owning_module)
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _compute(n, given, known))
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return known[node]
