"""What a causal mask lets a prefill stage leave out: the keys behind its rows, half of all."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from lightvlm_fx.errors import CaptureError
from lightvlm_fx.exporters.prompt import MaskRule
from lightvlm_fx.ops.attention import attend
from lightvlm_fx.ops.score_received import TILE
from lightvlm_fx.program import Program

OPS = torch.ops.lightvlm
SCORES = (OPS.score_received.default, OPS.score_text_mean.default, OPS.kv_score_rows.default)
MASK = 3  # which argument of theirs, and of `attend`
DERIVED = (OPS.take_tokens.default, OPS.mask_out.default, OPS.key_bias.default)  # of a mask: the same rule for the tokens that are left


def leave_out_later_keys(program: Program, given: dict[str, Tensor], segment: Tensor, blocks: bool) -> int:
    """Take causal masks off the scores of `program`, which then leave later keys out; with `blocks`, attention does so too.

    What a mask says is read off its values on an example, `given` by the names of the inputs; segment [B, S] is the example's.
    Returns how many nodes were changed.
    """
    changed, causal = 0, dict[fx.Node, bool]()
    for node in program.graph_module.graph.nodes:
        if node.target not in (*SCORES, attend) or not isinstance(node.args[MASK], fx.Node):
            continue
        source = node.args[MASK]
        while source.target in DERIVED:
            source = source.args[0]
        if source not in causal:
            causal[source] = _is_causal(_compute(source, given, {}), segment)
        if not causal[source] or (node.target is attend and not blocks):
            continue
        if node.target is attend:
            node.target = attend_in_blocks
        else:
            node.update_arg(MASK, None)
        changed += 1
    program.graph_module.recompile()
    return changed


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float = 0.0) -> Tensor:
    """`attend` for a causal `mask` [B, 1, S, S]: the rows of a tile look at the keys up to its end only."""
    tiles = []
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) if x.shape[1] != q.shape[1] else x for x in (k, v))  # once for all tiles
    for start in range(0, q.shape[2], TILE):
        stop = min(start + TILE, q.shape[2])
        tiles.append(attend(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], mask[:, :, start:stop, :stop], scale, softcap))
    return torch.cat(tiles, 1)


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
            known[node] = node.target(*args, **kwargs)
    return known[node]
