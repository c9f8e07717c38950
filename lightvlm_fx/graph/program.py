"""A program: one captured stage of a model as an FX graph, with what we know about its values.

The graph is flat: tensors in, tensors out, weights as `get_attr` nodes that share the model's storage.
Nodes carry `meta["val"]` (a fake tensor), `meta["nn_module_stack"]` and, where a pass made them,
`meta["lightvlm_pass"]`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import fx

from lightvlm_fx.compat import fake_mode, symbolic_size
from lightvlm_fx.graph.attention import Marker
from lightvlm_fx.graph.ports import SEGMENT, Port
from lightvlm_fx.schedule import token_set

Stage = Literal["vision", "prefill", "decode"]
EXAMPLE = 7  # the smallest number that a new symbolic size is traced at


@dataclass(frozen=True)
class CutNodes:
    """What a token reduction left in the graph; every field but `layer` names a node."""

    layer: int
    index: str  # [B, K] int64
    segment: str  # [B, K] int64
    went: str  # [B, S] int64, or "" where nothing was merged
    positions: str  # policy


@dataclass(frozen=True)
class Facts:
    """What is known of a program beyond its graph."""

    layers: int  # decoder layers
    hidden: int  # width D
    cuts: tuple[CutNodes, ...] = ()
    size: str = ""  # node [B, S] float32: original tokens that each one stands for
    biased: bool = False  # keys after the latest cut carry the log of their size
    outputs: tuple[str, ...] = ()  # what each graph output is
    masked: bool = False  # attention carries explicit masks
    positions_rank: int = 2  # 2: [B, S]; 3: M-RoPE [3 or 4, B, S]
    free: str = ""  # axes that are symbolic: rows "B" (but of one row without padding), tokens "S"
    static_length: bool = False  # the sequence length could not be kept symbolic
    output_class: type = tuple  # transformers' output class of the decoder

    def token_set(self, layer: int) -> int:
        """The set of tokens that decoder layer `layer` sees: 0 the prompt's, i + 1 what cut i left."""
        return token_set([cut.layer for cut in self.cuts], layer)


@dataclass
class Program:
    """One stage: `graph_module`, its name and its `facts`."""

    graph_module: fx.GraphModule
    stage: Stage
    facts: Facts
    inputs: tuple[str, ...] = field(default=())

    @property
    def graph(self) -> fx.Graph:
        return self.graph_module.graph

    def clone(self) -> Program:
        """An independent graph over the same weights."""
        graph = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(self.graph, values)
        graph.output(output)
        for old, new in values.items():
            new.meta = copy.copy(old.meta)
        made = fx.GraphModule(self.graph_module, graph, class_name=self.stage.capitalize())
        return Program(made, self.stage, self.facts, self.inputs)

    def node(self, name: str) -> fx.Node:
        for node in self.graph.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def placeholders(self) -> list[fx.Node]:
        return [n for n in self.graph.nodes if n.op == "placeholder"]

    def first(self) -> fx.Node:
        """The first node that computes something."""
        return next(n for n in self.graph.nodes if n.op == "call_function")

    def markers(self) -> dict[int, fx.Node]:
        """The attention marker of each decoder layer."""
        wanted = torch.ops.lightvlm.attention.default
        return {Marker.of(n).layer: n for n in self.graph.nodes if n.target == wanted}

    def output_node(self) -> fx.Node:
        return next(n for n in reversed(self.graph.nodes) if n.op == "output")

    def with_facts(self, **changes: Any) -> None:
        self.facts = replace(self.facts, **changes)

    def segment_at(self, layer: int) -> fx.Node:
        """What each token is [B, S] that decoder layer `layer` sees: of the latest cut's survivors, or of the prompt."""
        held = self.facts.token_set(layer)
        if held:
            return self.node(self.facts.cuts[held - 1].segment)
        if SEGMENT.name in self.inputs:
            return self.node(SEGMENT.name)
        embeds = value(self.sequence())
        return self.add_input(SEGMENT, embeds.new_empty(embeds.shape[:2], dtype=torch.int64))

    def add_input(self, port: Port, value: Any, number: int | None = None) -> fx.Node:
        """A new placeholder after the others, of a port, or of the one for `number`; `value` is its fake tensor."""
        assert number is not None or not port.each, f"{port.name} is one for each {port.each}"
        name = port.name if number is None else port.at(number)
        assert value.ndim in port.ranks, f"{name} is {port.shape}, got {value.ndim} dimensions"
        assert value.dtype == getattr(torch, port.dtype or str(value.dtype).removeprefix("torch.")), f"{name} is {port.dtype}"
        last = self.placeholders()[-1]
        with self.graph.inserting_after(last):
            node = self.graph.placeholder(name)
        node.meta["val"] = value
        self.inputs = (*self.inputs, name)
        return node

    def add_weight(self, name: str, weight: torch.Tensor) -> fx.Node:
        """A weight that the source does not have, of a part that was trained for a schedule; before everything that computes."""
        assert not hasattr(self.graph_module, name), f"there is a weight {name} already"
        self.graph_module.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))
        with self.graph.inserting_before(self.first()):
            node = self.graph.get_attr(name)
        node.meta["val"] = fake_mode(value(self.sequence())).from_tensor(weight, static_shapes=True)
        return node

    def new_size(self, name: str, least: int = EXAMPLE) -> torch.SymInt:
        """A symbolic size that no other value of the program has yet, for the dimension of a new input; traced at `least` or more."""
        return symbolic_size(fake_mode(value(self.sequence())), name, least + 2 * len(self.inputs))

    def add_ruler(self, port: Port, number: int | None = None) -> fx.Node:
        """A new input [n] whose only use is its size n, in the graph as a symbolic number."""
        return self.add_input(port, value(self.sequence()).new_empty(self.new_size(port.name), dtype=torch.int64), number)

    def add_output(self, what: str, node: fx.Node) -> None:
        end = self.output_node()
        end.args = (tuple(end.args[0]) + (node,),)
        self.with_facts(outputs=(*self.facts.outputs, what))

    def sequence(self) -> fx.Node:
        """The input embeddings [B, S, D]; of a vision program the pixels."""
        return next(n for n in self.placeholders() if n.name in ("inputs_embeds", "pixel_values"))


def value(node: Any) -> Any:
    """The fake tensor, symbolic number or plain number that `node` stands for."""
    return node.meta.get("val") if isinstance(node, fx.Node) else node
