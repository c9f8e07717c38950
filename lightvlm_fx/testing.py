"""Tiny programs, real inputs for them, and the contract that every pass keeps. For our tests and plug-ins'.

A plug-in's contract test is one line: `check_pass(tiny_program("prefill"), MyPass(layer=2))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import SymInt, Tensor

from lightvlm_fx import compiler
from lightvlm_fx.compat import expression
from lightvlm_fx.errors import PreconditionError, UnknownName
from lightvlm_fx.graph import ports
from lightvlm_fx.graph.pretty import letters, typed
from lightvlm_fx.graph.pretty import text as printed
from lightvlm_fx.graph.program import Program, Stage, value
from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.passes import CATALOGUE
from lightvlm_fx.passing.pass_base import Pass, parse_pass
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.zoo import build

LEAD, TAIL = 2, 4  # text tokens around the visual ones of `real_inputs`
SEEN, SLOTS = 8, 128  # tokens that the caches of `real_inputs` hold, and have room for
CAPTURED: tuple[Stage, ...] = ("prefill", "decode")
CUT = 4  # visual tokens that each cut takes off


def tiny_program(
    stage: Stage = "prefill",
    *,
    family: str = "llava",
    layers: int = 4,
    text: Sequence[int] = (7,),
    images: Sequence[int] = (1,),
) -> Program:
    """A captured stage of a tiny random model of `family`, prefill or decode, before any pass; about a second.

    `text` and `images` count text tokens and pictures of each row; rows of different length make a program
    with explicit masks. Raises UnknownName for another stage: vision towers are traced by exports.
    """
    if stage not in CAPTURED:
        raise UnknownName.of("captured stage of the decoder", stage, CAPTURED)
    return tiny_programs(family=family, layers=layers, text=text, images=images)[stage]


def tiny_programs(
    *, family: str = "llava", layers: int = 4, text: Sequence[int] = (7,), images: Sequence[int] = (1,)
) -> dict[Stage, Program]:
    """All stages of `tiny_program` from one capture."""
    tiny = build(family, layers=layers)
    fast = compiler.compile(tiny.model, "none", backend="eager")
    fast.lightvlm.warm_up(tiny.inputs(text=text, images=images), new_tokens=2)
    captured: dict[Stage, Program] = fast.lightvlm.captured
    return captured


def real_inputs(program: Program, *, seed: int = 0) -> tuple[Tensor, ...]:
    """Tensors that `program.graph_module` runs on, in the order of its placeholders.

    A row is LEAD text tokens, one picture, TAIL text tokens; every cut takes CUT tokens off the picture and leaves two or more.
    Where the program has masks, the first row begins with one token of padding. Caches hold SEEN tokens, positions go on after them.
    """
    draw = torch.Generator().manual_seed(seed)
    sizes = example_sizes(program)
    cuts = len(program.facts.cuts)
    rows, length = (_number(n, sizes) for n in value(program.sequence()).shape[:2])
    visual = max(0, length - LEAD - TAIL)
    segment = torch.full((rows, length), TEXT)
    segment[:, LEAD : LEAD + visual] = 0
    if program.facts.masked:
        segment[0, 0] = PADDING
    left = [visual - CUT * (cut + 1) for cut in range(cuts)]
    first = SEEN if program.stage == "decode" else 0
    here = torch.arange(first, first + length)
    grids = {ports.SEGMENT: segment, ports.GRID: one_line(segment)}
    constants = {ports.START: 0, ports.KV_COUNT: LEAD + TAIL, ports.KV_MOST: length, ports.LIMIT: SEEN}

    def real(name: str, fake: Tensor) -> Tensor:
        shape = tuple(_number(n, sizes) for n in fake.shape)
        port, number = ports.port_of(name)
        if port in grids:
            return grids[port]
        if port is ports.BUDGET:
            budget = torch.zeros(shape, dtype=fake.dtype)
            budget[:, 0] = left[int(number)]
            return budget
        if name == "position_ids" or port in (ports.QUERY, ports.SLOT):
            return here.expand(shape).clone()
        if port is ports.POSITION:
            slots = torch.arange(shape[-1])
            return torch.where(slots < SEEN, slots, -1).expand(shape).clone()
        if port in constants:
            return torch.full(shape, constants[port])
        if port is ports.SHIFT:
            return torch.full(shape, int(number) + 1)
        if port and port.is_ruler:
            return torch.empty(shape, dtype=fake.dtype)
        if name.startswith("attention_mask"):
            return _mask(segment, shape, fake.dtype)
        if fake.is_floating_point():
            return torch.randn(shape, generator=draw).to(fake.dtype)
        return (segment >= 0).to(fake.dtype).expand(shape).clone()

    return tuple(real(node.name, value(node)) for node in program.placeholders())


def one_line(segment: Tensor) -> Tensor:
    """Frame, row and column [B, S, 6] of pictures of one row."""
    visual = segment >= 0
    column, wide = visual.long().cumsum(1) - 1, visual.sum(1, keepdim=True).expand_as(segment)
    none, one = torch.zeros_like(segment), torch.ones_like(segment)
    return torch.where(visual.unsqueeze(-1), torch.stack([none, none, column, one, one, wide], -1), 0)


def example_sizes(program: Program) -> dict[Any, int]:
    """A number for every symbolic size of the inputs of `program`, as `real_inputs` has them."""
    cuts = len(program.facts.cuts)
    length = LEAD + TAIL + CUT * cuts + 2
    numbers = {"B": 2, "S": length, "T": LEAD + TAIL, "I": 4} | {f"K{i}": length - CUT * (i + 1) for i in range(cuts)}
    numbers |= {f"E{i}": LEAD + TAIL for i in range(program.facts.layers)} | {f"C{i}": SLOTS for i in range(program.facts.layers)}
    known = letters(program)
    symbols = {str(size): expression(size) for node in program.placeholders() for size in value(node).shape if isinstance(size, SymInt)}
    return {symbols[name]: numbers[letter] for name, letter in known.items()}


def run(program: Program, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """The program's outputs on `inputs`, by name. The inputs are copied: decode programs write to them."""
    with torch.no_grad():
        outputs = program.graph_module(*(x.clone() for x in inputs))
    return dict(zip(program.facts.outputs, outputs, strict=True))


def check_pass(program: Program, pass_: Pass) -> Program:
    """Assert that `pass_` keeps the contract of a pass on `program`; returns the rewritten program.

    Its text parses back to it; `program` is untouched and its weights are shared; inputs and outputs keep
    name, dtype and rank, but for outputs it declares in `drops` and those it adds; `changed` says whether
    the text changed; inserted nodes carry their value and the pass's name; a second run changes nothing or
    is refused; the result runs on real tensors and gives the shapes that its nodes promise.
    """
    catalogue = {**CATALOGUE, pass_.name: type(pass_)}
    assert parse_pass(str(pass_), catalogue) == pass_, (
        f"{pass_!r} prints as {pass_}, which parses to another pass"
    )
    before, facts, inputs = printed(program, noise=True), program.facts, program.inputs
    after, (step,) = Pipeline([pass_]).run(program)

    assert printed(program, noise=True) == before, f"{pass_} changed the text of the program it was given"
    assert (program.facts, program.inputs) == (facts, inputs), (
        f"{pass_} changed the facts of the program it was given"
    )
    changed = printed(after, noise=True) != before
    assert step.result.changed == changed, (
        f"{pass_} reports changed={step.result.changed}, but the text did otherwise"
    )
    for name, tensor in _weights(program).items():
        twin = _weights(after).get(name)
        assert twin is None or twin.data_ptr() == tensor.data_ptr(), f"{pass_} copied the weight {name}"
    _check_interface(program, after, pass_)
    _check_nodes(program, after, pass_)
    _check_runs(after, pass_)
    _check_second_run(after, pass_)
    return after


def _check_interface(before: Program, after: Program, pass_: Pass) -> None:
    names = tuple(n.name for n in after.placeholders())
    assert names == after.inputs, f"{pass_}: placeholders {names} are not the declared inputs {after.inputs}"
    assert names[: len(before.inputs)] == before.inputs, (
        f"{pass_} took inputs away: had {before.inputs}, left {names}"
    )
    for old, new in zip(before.placeholders(), after.placeholders(), strict=False):
        assert _kind(old) == _kind(new), (
            f"{pass_} changed input {old.name}: {typed(value(old))} to {typed(value(new))}"
        )
    was, now = _outputs(before), _outputs(after)
    kept = [name for name in was if name.split(".")[0] not in pass_.drops]
    assert list(now)[: len(kept)] == kept, (
        f"{pass_} took outputs away without declaring it: had {list(was)}, left {list(now)}"
    )
    for name in kept:
        assert _kind(was[name]) == _kind(now[name]), f"{pass_} changed the dtype or rank of output {name}"


def _check_nodes(before: Program, after: Program, pass_: Pass) -> None:
    known = {n.name for n in before.graph.nodes}
    for node in after.graph.nodes:
        if node.op == "call_function" and node.name not in known:
            assert value(node) is not None, f"{pass_}: %{node.name} has no value"
            made_by = node.meta.get("lightvlm_pass")
            assert made_by == pass_.name, f"{pass_}: %{node.name} says it was made by {made_by}"


def _check_second_run(after: Program, pass_: Pass) -> None:
    try:
        again, _ = Pipeline([pass_]).run(after)
    except PreconditionError:
        return
    same = printed(again, noise=True) == printed(after, noise=True)
    assert same, f"{pass_}: a second run changed the program again; refuse it in requires()"


def _check_runs(after: Program, pass_: Pass) -> None:
    inputs, sizes = real_inputs(after), example_sizes(after)
    for name, tensor in run(after, inputs).items():
        promised = tuple(_number(n, sizes) for n in value(_outputs(after)[name]).shape)
        assert tuple(tensor.shape) == promised, (
            f"{pass_}: output {name} has shape {tuple(tensor.shape)}, promised {promised}"
        )
        assert bool(torch.isfinite(tensor).all()), f"{pass_}: output {name} is not finite"


def _weights(program: Program) -> dict[str, Tensor]:
    targets = [str(n.target) for n in program.graph.nodes if n.op == "get_attr"]
    return {name: getattr(program.graph_module, name) for name in targets}


def _outputs(program: Program) -> dict[str, Any]:
    nodes: Any = program.output_node().args[0]
    return dict(zip(program.facts.outputs, nodes, strict=True))


def _kind(node: Any) -> tuple[torch.dtype, int]:
    return value(node).dtype, value(node).ndim


def _number(size: Any, sizes: dict[Any, int]) -> int:
    """A size as a number."""
    return int(expression(size).xreplace(sizes)) if isinstance(size, SymInt) else int(size)


def _mask(segment: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A mask [B, S], or a causal one [B, 1, S, S], that closes padding."""
    real = segment != PADDING
    if len(shape) == 2:
        return real.to(dtype)
    length = segment.shape[1]
    open_ = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None, None, :]
    open_ = (open_ | torch.eye(length, dtype=torch.bool)).expand(shape)
    return open_.clone() if dtype == torch.bool else torch.where(open_, 0.0, torch.finfo(dtype).min).to(dtype)
