"""Products of one row, as in a step that decodes, on a processor: sums, of which inductor makes loops that read each weight once.

MKL and oneDNN reach a quarter to a half of the memory's speed at one row, and of integer weights (torchao's) floating numbers are made in
memory first, at every step. A sum is one loop, with what makes the numbers in it.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from lightvlm_fx.compat import schema
from lightvlm_fx.graph.program import value

LONGEST = 4096  # numbers that inductor adds without a helper against rounding, which takes up to twice as long


def one_row(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A row x [..., n] times weight [m, n] transposed, plus bias [m]: what F.linear gives."""
    length = x.shape[-1]
    row = x.contiguous().as_strided((1, length), (length, 1))  # numbers in memory: others would be computed anew for every sum
    parts = next((n for n in range(1, length) if length % n == 0 and length // n <= LONGEST), 1)
    out = (row * weight).view(-1, parts, length // parts).sum(-1).sum(-1)
    return (out if bias is None else out + bias).view(*x.shape[:-1], -1)


def one_row_mm(x: Tensor, weight: Tensor) -> Tensor:
    """A row x [1, n] times weight [n, m]."""
    return one_row(x, weight.t())


SUMS = {torch.ops.aten.linear.default: one_row, torch.ops.aten.mm.default: one_row_mm}


def as_sums(graph: fx.Graph) -> None:
    """Write products of one row in `graph`, whose nodes have fake values, as sums."""
    for target, instead in SUMS.items():
        for node in graph.find_nodes(op="call_function", target=target):
            x = value(node.args[0])
            one = all(isinstance(n, int) for n in x.shape) and math.prod(x.shape[:-1]) == 1
            if x.device.type == "cpu" and one and _whole(node.args[0]):
                node.target = instead


def _whole(node: Any) -> bool:
    """Whether `node` is no part of a larger tensor: torch 2.11's inductor takes a view by strides of a part from where the whole begins."""
    while node.op == "call_function":
        made = node.args[0] if node.target is operator.getitem else node
        said = schema(made.target)  # a sum that was written here has none
        if said is None or said.returns[0].alias_info is None:  # numbers of its own
            return True
        if made is not node or _count(made.args[0]) != _count(node):
            return False
        node = made.args[0]
    return True


def _count(node: fx.Node) -> int | None:
    """The numbers in a tensor; None where that is symbolic."""
    count = value(node).numel()
    return count if isinstance(count, int) else None
