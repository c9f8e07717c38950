"""What a causal mask lets a prefill stage leave out: the keys after its rows, half of all.

And what attention by blocks gives for nothing: the probabilities that a layer's cache score sums up.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from inspect import signature
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from lightvlm_fx.errors import CaptureError
from lightvlm_fx.exporters.prompt import MaskRule
from lightvlm_fx.graph.attention import Attend
from lightvlm_fx.graph.ports import SEGMENT
from lightvlm_fx.graph.program import Program, value
from lightvlm_fx.methods import operators
from lightvlm_fx.methods.entry_scores.attention import Attention
from lightvlm_fx.ops.attention import attend
from lightvlm_fx.ops.segments import PADDING, per_group
from lightvlm_fx.ops.tiles import tiles

OPS = torch.ops.lightvlm
MASK = [*signature(attend).parameters].index("mask")
DERIVED = (OPS.take_tokens.default, OPS.mask_out.default)  # of a mask: the same rule for the tokens that are left


def leave_out_later_keys(program: Program, given: dict[str, Tensor], segment: Tensor, blocks: bool) -> int:
    """Take causal masks off the scores of `program`, which then leave later keys out; with `blocks`, attention does so too.

    What a mask says is read off its values on an example, `given` by the names of the inputs; segment [B, S] is the example's.
    Returns how many nodes were changed.
    """
    changed, causal, sums, biases = 0, dict[fx.Node, bool](), dict[tuple[Any, ...], fx.Node](), dict[tuple[Any, ...], fx.Node]()
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        method = operators.method_of(node.target)
        at = _mask_of(node, method)
        if at is None or not isinstance(source := node.args[at], fx.Node):
            continue
        while source.target in DERIVED:
            source = source.args[0]
        if source not in causal:
            causal[source] = _is_causal(_compute(source, given, {}), segment)
        if not causal[source] or (node.target is attend and (not blocks or _of_some_rows(node))):
            continue
        if node.target is attend:
            _in_blocks(graph, node, _segment(program, Attend.of(node).mask), sums.get(_what(node)), biases)
        else:
            if method == (Attention, "prompt"):
                sums[_what(node)] = node
            node.update_arg(at, None)
        changed += 1
    for node in reversed(list(graph.nodes)):
        if node.target in DERIVED and not node.users:  # masks that nothing reads any more
            graph.erase_node(node)
    graph.lint()
    program.graph_module.recompile()
    return changed


def _mask_of(node: fx.Node, method: tuple[Any, str] | None) -> int | None:
    """Which argument of an attention, or of the operator of a `method`, is its mask; None where none is."""
    if node.target is attend:
        return MASK
    read = operators.arguments(*method) if method else ()
    return read.index("mask") if "mask" in read else None


def _of_some_rows(node: fx.Node) -> bool:
    """Whether an attention has fewer queries than keys, as in layers that freeze tokens."""
    q, k = value(Attend.of(node).q), value(Attend.of(node).k)
    return q is not None and k is not None and str(q.shape[2]) != str(k.shape[2])


def _what(node: fx.Node) -> tuple[Any, ...]:
    """Queries, keys, mask and scale of an attention, or of a score that sums it up."""
    if node.target is attend:
        attention = Attend.of(node)
        return attention.q, attention.k, attention.mask, attention.scale
    given = dict(zip(operators.arguments(Attention, "prompt"), node.args, strict=True))
    return given["q"], given["k"], given["mask"], given["scale"]


def _segment(program: Program, mask: Any) -> Any:
    """What each token is [B, S] that a causal `mask` is for: of a cut's survivors, or of the prompt."""
    while mask.target in DERIVED:
        if mask.target is OPS.mask_out.default:
            return mask.args[1]
        mask = mask.args[0]
    for node in program.graph_module.graph.nodes:
        if node.op == "placeholder" and node.target == SEGMENT.name:
            return node
    embeds = value(program.sequence())
    return program.add_input(SEGMENT, embeds.new_empty(embeds.shape[:2], dtype=torch.int64))


def _in_blocks(
    graph: fx.Graph, node: fx.Node, segment: fx.Node, score: fx.Node | None, biases: dict[tuple[Any, ...], fx.Node]
) -> None:
    """Replace an `attend`, and the `score` that sums up its probabilities if there is one, by attention in blocks.

    `biases`: those that there are, by the tokens and sizes that they are made of.
    """
    q, k, v, _, scale, softcap, size = Attend.of(node)
    together = score is not None and not softcap
    made_of = (segment, None if together else size)
    with graph.inserting_before(score if score is not None and together else node):
        if made_of not in biases:
            biases[made_of] = graph.call_function(tile_biases, (q, *made_of))
        if not together:
            node.target, node.args = attend_in_blocks, (q, k, v, biases[made_of], scale, softcap)
            return
        both = graph.call_function(attend_and_score, (q, k, v, biases[made_of], segment, scale, size))
        for number, old in enumerate((node, score)):
            old.replace_all_uses_with(graph.call_function(operator.getitem, (both, number)))
            graph.erase_node(old)


def tile_biases(q: Tensor, segment: Tensor, size: Tensor | None = None) -> list[Tensor]:
    """Of every tile of rows what is added to its logits [B, rows, end]: the causal mask of tokens that `segment` [B, S] tells from padding.

    A tile looks at the keys up to its end only. With `size` [B, S] a key counts as so many tokens. The same for all layers of such
    tokens: of q [B, H, S, d], the first one's, only the shape and the device are read.
    """
    length = segment.shape[1]
    here, real = torch.arange(length, device=segment.device), (segment != PADDING).unsqueeze(1)
    counts = torch.zeros(1, dtype=torch.float32, device=segment.device) if size is None else size.clamp_min(1).log().unsqueeze(1)
    lowest = torch.finfo(torch.float32).min  # finite: a padding query may see no key, and NaN would spread through its value
    made = []
    for start, stop in tiles(q, length, q.shape[0] * q.shape[1] * length):
        seen = (here[:stop] <= here[start:stop, None]) & real[..., :stop]
        made.append(torch.where(seen, counts[..., :stop], lowest))
    return made


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, biases: list[Tensor], scale: float, softcap: float = 0.0) -> Tensor:
    """`attend` under the causal mask that `tile_biases` made."""
    values, parts = v.float().unsqueeze(2), []
    for _, stop, p in _probabilities(q, k, biases, scale, softcap):
        parts.append(p @ values[..., :stop, :])
    return _joined(parts, v)


def attend_and_score(
    q: Tensor, k: Tensor, v: Tensor, biases: list[Tensor], segment: Tensor, scale: float, size: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`attend_in_blocks`, and the KV score `attention`, which counts no sizes: [B, S, H, d] and [B, G, S].

    Both from the same probabilities. That a key counts as `size` [B, S] tokens is a factor of its probability, and of its value.
    """
    rows = (segment != PADDING)[:, None, None, None].float()
    weight = None if size is None else size.clamp_min(1)[:, None, None, :, None]
    values = v.float().unsqueeze(2) if weight is None else v.float().unsqueeze(2) * weight
    received, parts = torch.zeros(k.shape[:3], dtype=torch.float32, device=k.device), []
    for start, stop, p in _probabilities(q, k, biases, scale):
        out = p @ values[..., :stop, :]
        parts.append(out if weight is None else out / (p @ weight[..., :stop, :]))
        received = received + F.pad((rows[..., start:stop] @ p).squeeze(3).mean(2), [0, q.shape[2] - stop])
    return _joined(parts, v), received


def _probabilities(
    q: Tensor, k: Tensor, biases: list[Tensor], scale: float, softcap: float = 0.0
) -> Iterator[tuple[int, int, Tensor]]:
    """Of every tile of rows its begin, its end, and its attention [B, G, H/G, rows, end] to the keys before that end."""
    queries, keys = per_group(q.float() * scale, k), k.float().transpose(2, 3).unsqueeze(2)
    for bias in biases:
        rows, stop = bias.shape[1:]
        logits = queries[..., stop - rows : stop, :] @ keys[..., :stop]
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        yield stop - rows, stop, (logits + bias[:, None, None]).softmax(-1)


def _joined(parts: list[Tensor], v: Tensor) -> Tensor:
    """Tiles [B, G, H/G, rows, d] as [B, S, H, d]."""
    return torch.cat(parts, 3).flatten(1, 2).transpose(1, 2).to(v.dtype)


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
