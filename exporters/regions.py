"""Compiling with inductor: equal decoder layers once.

A decoder is one layer over and over. The graph is cut up at the layers, and of parts that compute the same only the first is compiled:
minutes become seconds. Calling a part takes time of its own, so a few equal layers in a row make one part. The programs are graphs
already, so dynamo, which would trace them again and look at every weight at every call, has no part in it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import SymInt, Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from lightvlm_fx.compat import (
    expression,
    fresh_mode,
    inductor,
    operators,
    pytree,
    shapes_in_python,
    size_checks,
    symbolic_size,
    tracing,
    without_stack_traces,
)  # fmt: skip
from lightvlm_fx.errors import InputError
from lightvlm_fx.exporters.one_row import SUMS, as_sums
from lightvlm_fx.graph.edit import module_path
from lightvlm_fx.graph.program import Program, value
from lightvlm_fx.ops import packed_linear  # noqa: F401  (registers it)

PACKED = torch.ops.lightvlm.packed_linear.default
LINEAR = {*map(str, SUMS), *map(str, SUMS.values()), str(PACKED)}
CUT = "cut"
GROUP = 2  # layers of a part at most: more take longer to compile, fewer longer to call
BUFFERS = ("keys_", "values_", "position_", "score_", "size_")  # inputs that graphs write


def dynamic_dims(program: Program) -> list[tuple[int, int]]:
    """(input, dimension) of everything that may differ from call to call of one graph."""
    return [(i, d) for i, node in enumerate(program.placeholders()) for d, size in enumerate(value(node).shape) if isinstance(size, SymInt)]


class ByLayer:
    """A program as a function of its inputs: compiled for the first sizes it meets, and anew where parts assumed more than holds.

    With `prepack`, linear layers read copies of their weights in the layout of oneDNN, made at the first call.

    While `frozen`, what asks for compiling raises InputError.
    """

    compiled: ClassVar[int] = 0  # graphs, in this process

    def __init__(self, program: Program, prepack: bool = False) -> None:
        self.program, self.frozen, self.prepack = program, False, prepack
        nodes = program.graph.nodes
        self.names = list(dict.fromkeys(node.target for node in nodes if node.op == "get_attr"))
        self.weights = [_attribute(program.graph_module, name) for name in self.names]
        self.dims = dynamic_dims(program)
        self.made: list[tuple[Callable[[Sequence[int]], bool], Callable[..., Any]]] = []

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        sizes = [inputs[i].shape[d] for i, d in self.dims]
        if 0 in sizes:  # of nothing there is little to compute
            return self.program.graph_module(*inputs)
        given = [x if x.is_contiguous() else self._laid_out(i, x) for i, x in enumerate(inputs)]
        run = self._made_for(sizes) or self._compile(given, sizes)
        return run(*self.weights, *given)

    def _made_for(self, sizes: Sequence[int]) -> Callable[..., Any] | None:
        return next((run for holds, run in self.made if holds(sizes)), None)

    def _laid_out(self, i: int, x: Tensor) -> Tensor:
        name = self.program.inputs[i]
        assert not name.startswith(BUFFERS), f"the buffer {name} is not contiguous: a defect of lightvlm_fx"
        return x.contiguous()

    @tracing()
    def _compile(self, inputs: Sequence[Tensor], sizes: Sequence[int]) -> Callable[..., Any]:
        if run := self._made_for(sizes):  # by another thread, while this one waited
            return run
        if self.frozen:
            raise InputError(
                f"this batch asks the {self.program.stage} graph for sizes it was not compiled for ({', '.join(map(str, sizes))}), and "
                "compiling is frozen; call fast.lightvlm.warm_up(inputs) with such a batch before freezing, or fast.lightvlm.thaw()"
            )
        ByLayer.compiled += 1
        mode = fresh_mode()
        with torch.inference_mode(False), torch.no_grad(), without_stack_traces():
            given = _symbolic(mode, self.program, inputs)
            weights = [mode.from_tensor(x, static_shapes=True) for x in self.weights]
            with mode, shapes_in_python():
                graph, blocks = _in_aten(self.program, dict(zip(self.names, weights, strict=True)), given, self.prepack)
            run = by_layer(graph, blocks, mode)
        dims = [given[i].shape[d] for i, d in self.dims]
        times = [_multiple(size)[0] if isinstance(size, SymInt) else 1 for size in dims]
        holds = size_checks(mode, [size // n for size, n in zip(dims, times, strict=True)])
        self.made.append((lambda numbers: holds([number // n for number, n in zip(numbers, times, strict=True)]), run))
        return run


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _symbolic(mode: Any, program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Fake inputs of `mode`, with a symbolic size wherever the program has one: sizes that are one there are one here."""
    known: dict[Any, Any] = {}

    def size(wanted: Any, number: int, name: str) -> Any:
        if not isinstance(wanted, SymInt):
            return number
        times, key = _multiple(wanted)
        if key not in known:
            known[key] = symbolic_size(mode, name, max(2, number // times))  # code for two and more is right for one, too
        return known[key] * times

    made = []
    for node, x in zip(program.placeholders(), inputs, strict=True):
        shape = [size(n, m, f"{node.name}_{d}") for d, (n, m) in enumerate(zip(value(node).shape, x.shape, strict=True))]
        with mode:
            made.append(torch.empty(shape, dtype=x.dtype, device=x.device))
    return made


def _multiple(size: SymInt) -> tuple[int, Any]:
    """A symbolic size as a number of times a symbol; once itself where it is none."""
    times, symbol = expression(size).as_coeff_Mul()
    return (int(times), symbol) if symbol.is_Symbol else (1, expression(size))


def _in_aten(
    program: Program, weights: dict[str, Tensor], inputs: Sequence[Tensor], prepack: bool
) -> tuple[fx.GraphModule, list[list[fx.Node]]]:
    """The program with its weights as first inputs, so that layers differ in nothing else, and with the operators that functions of this
    package are made of; and its blocks. Every node has its fake value; a block that computes what one before computes takes them from it.
    """
    graph = fx.Graph()
    new: dict[fx.Node, Any] = {}
    known: dict[Any, tuple[list[fx.Node], list[fx.Node], list[fx.Node]]] = {}
    blocks = []
    lifted = {name: _noted(graph.placeholder(f"weight_{i}"), fake) for i, (name, fake) in enumerate(weights.items())}
    for node, fake in zip(program.placeholders(), inputs, strict=True):
        new[node] = _noted(graph.node_copy(node), fake)
    for node in program.graph.nodes:
        if node.op == "get_attr":
            new[node] = lifted[node.target]
    for block in _blocks(program.graph):
        *key, outside = _key(block)
        start = len(graph.nodes)
        if (like := known.get(tuple(key))) is None:
            for node in block:
                new[node] = _computed(graph, node, new)
        else:
            _copied(graph, new, block, outside, *like)
        made = list(graph.nodes)[start:]
        known.setdefault(tuple(key), (block, outside, made))
        blocks.append(made)
    graph.node_copy(program.output_node(), new.__getitem__)
    as_sums(graph)
    if prepack:
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
            if node.args[1].op == "placeholder":  # a weight, of two dimensions
                node.target = PACKED
    return fx.GraphModule({}, graph), blocks


def _blocks(graph: fx.Graph) -> list[list[fx.Node]]:
    """What computes, in order: a list of nodes for each layer, each cut, and what lies between."""
    blocks: list[list[fx.Node]] = [[]]
    owner: dict[fx.Node, list[fx.Node]] = {}
    place = ""
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        here = _place(node)
        if here and here != place:  # a node that a pass put in belongs where it stands
            blocks.append([])
            place = here
        # what picks a result out of several goes with what makes them: parts hand each other tensors
        owner[node] = owner.get(node.args[0], blocks[-1]) if node.target is operator.getitem else blocks[-1]
        owner[node].append(node)
    return [block for block in blocks if block]


def _place(node: fx.Node) -> str:
    """The layer that a node is of, or the cut; empty where nothing says."""
    if node.meta.get("lightvlm_pass") == "reduce-tokens":
        return CUT
    path = module_path(node).split(".")
    number = next((i for i, name in enumerate(path) if name.isdecimal()), 0)
    return ".".join(path[: number + 1])


def _noted(node: fx.Node, fake: Any) -> fx.Node:
    node.meta["val"] = fake
    return node


def _computed(graph: fx.Graph, node: fx.Node, new: dict[fx.Node, Any]) -> Any:
    """`node` at the end of `graph`; of a function of this package the operators that it is made of."""
    if not getattr(node.target, "__module__", "").startswith("lightvlm_fx."):
        copied = graph.node_copy(node, new.__getitem__)
        args, kwargs = pytree.tree_map_only(fx.Node, value, (copied.args, copied.kwargs))
        return _noted(copied, node.target(*args, **kwargs))
    read = node.all_input_nodes

    def call(*fakes: Any) -> Any:
        fake = dict(zip(read, fakes, strict=True)).__getitem__
        return node.target(*fx.node.map_arg(node.args, fake), **fx.node.map_arg(node.kwargs, fake))

    traced = operators(call, [value(new[x]) for x in read])
    return graph.graph_copy(traced, dict(zip(traced.find_nodes(op="placeholder"), (new[x] for x in read), strict=True)))


def _copied(graph: fx.Graph, new: dict[fx.Node, Any], block: list[fx.Node], outside: list[fx.Node],
            like: list[fx.Node], its_outside: list[fx.Node], its_made: list[fx.Node]) -> None:  # fmt: skip
    """`block` at the end of `graph`, as what was made of the block `like`, which computes the same of other values."""
    inside = set(block)
    instead = {new[old]: new[now] for old, now in zip(its_outside, outside, strict=True)}
    for node in its_made:
        instead[node] = graph.node_copy(node, instead.__getitem__)
    for old, now in zip(like, block, strict=True):
        new[now] = fx.node.map_arg(new[old], instead.__getitem__)
        if now.users.keys() - inside:  # an input of another part: inductor takes one fake tensor for one value
            new[now].meta["val"] = pytree.tree_map_only(Tensor, _another, value(new[now]))


def _another(fake: Tensor) -> Tensor:
    return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)


def by_layer(graph: fx.GraphModule, blocks: list[list[fx.Node]], mode: Any) -> Callable[..., Any]:
    """`graph`, whose values are fakes of `mode`, compiled part by part."""
    number = {node: i for i, group in enumerate(_grouped(blocks)) for block in group for node in block}
    whole = split_module(graph, None, number.__getitem__, keep_original_order=True)
    known: dict[Any, Callable[..., Any]] = {}
    for node in whole.graph.nodes:
        if node.op == "call_module":
            part = getattr(whole, node.target)
            if not _is_choice(part):
                setattr(whole, node.target, _Part(part, known, mode))
    return whole


def _grouped(blocks: list[list[fx.Node]]) -> list[list[list[fx.Node]]]:
    """Blocks that make one part: a run of equal ones in groups as equal as they can be, of GROUP at most."""
    owner = {node: i for i, block in enumerate(blocks) for node in block}

    def shared(i: int) -> set[fx.Node]:
        """What the block and others read, as layers of a stage read its mask."""
        read = {x for node in blocks[i] for x in node.all_input_nodes if owner.get(x) != i}
        return {x for x in read if any(owner.get(user) != i for user in x.users)}

    runs: list[list[int]] = []
    last: Any = None
    for i, block in enumerate(blocks):
        kind = (_key(block)[0], shared(i))
        if kind != last:
            runs.append([])
        runs[-1].append(i)
        last = kind
    groups = []
    for run in runs:
        count = -(-len(run) // GROUP)
        ends = [len(run) * n // count for n in range(count + 1)]
        groups += [[blocks[i] for i in run[start:stop]] for start, stop in pairwise(ends)]
    return groups


def _is_choice(part: fx.GraphModule) -> bool:
    """Whether a part chooses tokens or entries and computes no layer: ops that a compiler does not look into."""
    targets = [str(node.target) for node in part.graph.nodes]
    return any(name.startswith("lightvlm") for name in targets) and not LINEAR & set(targets)


class _Part(nn.Module):
    """A compiled part in the place of its graph."""

    def __init__(self, part: fx.GraphModule, known: dict[Any, Callable[..., Any]], mode: Any) -> None:
        super().__init__()
        self.single = not isinstance(_results(part), tuple | list)
        self.run = _compiled(part, known, mode)

    def forward(self, *values: Any) -> Any:
        out = self.run(*values)
        return out[0] if self.single else out


def _results(part: fx.GraphModule) -> Any:
    return next(iter(reversed(part.graph.nodes))).args[0]


def _compiled(part: fx.GraphModule, known: dict[Any, Callable[..., Any]], mode: Any) -> Callable[..., Any]:
    """What inductor makes of a part, or made of an equal one before."""
    key, symbols, _ = _key(part.graph.nodes)
    if key in known:
        return known[key]
    if (key, symbols) in known:
        return known[key, symbols]
    results = _results(part)
    if not isinstance(results, tuple | list):
        next(iter(reversed(part.graph.nodes))).args = ((results,),)
    implied = _implied_sizes(part.graph)
    part.recompile()
    before = len(mode.shape_env.guards)
    made = inductor(part, [node.meta["val"] for node in part.graph.nodes if node.op == "placeholder"], mode)

    def run(*values: Any) -> Any:
        return made(*(values[i].shape[d] // times for i, d, times in implied), *values)

    # what was assumed of these sizes is checked of these alone: parts of other sizes are not equal then
    known[key if len(mode.shape_env.guards) == before else (key, symbols)] = run
    return run


def _implied_sizes(graph: fx.Graph) -> list[tuple[int, int, int]]:
    """Give a part's graph, as first inputs, the sizes of which its tensors only have multiples: inductor takes none from those.

    Of each the number of the tensor, its dimension, and how many times the size it is.
    """
    inputs = graph.find_nodes(op="placeholder")
    sizes = [(i, d, size, _multiple(size)) for i, node in enumerate(inputs) if isinstance(value(node), Tensor)
             for d, size in enumerate(value(node).shape) if isinstance(size, SymInt)]  # fmt: skip
    plain = {symbol for _, _, _, (times, symbol) in sizes if times == 1}
    plain |= {expression(value(node)) for node in inputs if isinstance(value(node), SymInt)}
    found: dict[Any, tuple[int, int, int]] = {}
    for i, d, size, (times, symbol) in sizes:
        if times > 1 and symbol not in plain | found.keys():
            with graph.inserting_before(inputs[0]):
                _noted(graph.placeholder(f"size_{len(found)}"), size // times)
            found[symbol] = (i, d, times)
    return list(found.values())


def _key(nodes: Iterable[fx.Node]) -> tuple[str, tuple[str, ...], list[fx.Node]]:
    """What nodes compute, with values and symbolic sizes numbered in order; those sizes by name; and what they read from elsewhere."""
    outside = []
    values: dict[fx.Node, str] = {}
    symbols: dict[str, str] = {}
    lines = []

    def named(size: Any) -> str:
        text = str(expression(size)) if isinstance(size, SymInt) else str(size)
        return re.sub(r"\b[su]\d+\b", lambda m: symbols.setdefault(m[0], f"n{len(symbols)}"), text)

    def shown(x: Any) -> str:
        if isinstance(x, fx.Node):
            if x not in values:
                outside.append(x)
                describe(x, "")
            return values[x]
        if isinstance(x, list | tuple):
            return f"[{','.join(map(shown, x))}]"
        if isinstance(x, dict):
            return f"{{{','.join(f'{k}:{shown(v)}' for k, v in x.items())}}}"
        return f"{type(x).__name__}:{x}"

    def describe(node: fx.Node, what: str) -> None:
        values[node] = f"%{len(values)}"
        like = node.meta.get("val")
        if isinstance(like, Tensor):
            kind = f"{like.dtype}{like.device}{[*map(named, like.shape)]}{[*map(named, like.stride())]}"
        else:
            kind = named(like) if isinstance(like, SymInt | int) else ""
        lines.append(f"{what} {kind}")

    for node in nodes:
        describe(node, "" if node.op == "placeholder" else f"{node.op} {node.target}{shown(node.args)}{shown(node.kwargs)}")
    return "\n".join(lines), tuple(symbols), outside
