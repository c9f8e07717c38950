"""In which order ONNX Runtime computes what a graph hands out."""

from __future__ import annotations

import onnx_ir as ir


def least_first(model: ir.Model) -> None:
    """Put the nodes that nothing reads after all others, the one that hangs on the most nodes first.

    ONNX Runtime finds its order by walking back from such nodes, from the last in the file. As a prefill stage is traced, the logits
    would come first and the choice of each layer's cache entries after all layers, with all that it reads kept until then: the
    attention of every layer. This way a layer's entries are chosen before the next layer runs.
    """
    above: dict[ir.Node, int] = {}  # bits of the nodes that a node hangs on, itself among them
    for number, node in enumerate(model.graph):
        bits = 1 << number
        for value in node.inputs:
            made = None if value is None else value.producer()
            bits |= 0 if made is None else above[made]
        above[node] = bits
    ends = [node for node in model.graph if not any(value.uses() for value in node.outputs)]
    for node in sorted(ends, key=lambda node: -above[node].bit_count()):
        model.graph.remove(node)
        model.graph.append(node)
