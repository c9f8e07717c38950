"""torch: fake tensors and symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode as GuardOnDataDependentSymNode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols as free_unbacked_symbols


def expression(size: torch.SymInt | torch.SymBool) -> Any:
    """The sympy expression of a symbolic size or check."""
    return size.node.expr


def at_least_one(expr: Any) -> Any:
    """An expression of sizes that are 1 or more: with n for the Max(1, n) of strides, which torch writes in case there were none."""
    from torch.utils._sympy.functions import Max

    for part in expr.find(lambda e: isinstance(e, Max) and len(e.args) == 2 and 1 in e.args):
        expr = expr.xreplace({part: next(x for x in part.args if x != 1)})
    return expr


def hint(size: Any) -> int:
    """The number at which a symbolic size is traced; of a number itself."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def settled(size: Any) -> Any:
    """A size as a plain number where it is one whatever the symbols: s + 256 - s."""
    return int(size) if isinstance(size, torch.SymInt) and expression(size).is_number else size


def fake_mode(like: Any) -> Any:
    """The mode that a fake tensor was made under, None of anything else."""
    return getattr(like, "fake_mode", None)


def fresh_mode() -> Any:
    """A mode whose fake tensors have symbolic sizes of their own, apart from every other trace."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(shape_env=ShapeEnv())


def shapes_in_python() -> AbstractContextManager[Any]:
    """Operators of fake tensors find their shapes in Python, where those written in C++ take some sizes for numbers, or fail on them."""
    from torch._dispatch.python import enable_python_dispatcher

    return enable_python_dispatcher()


def on_fakes(target: Any, args: Any, kwargs: Any) -> Any:
    """What `target` gives of fake tensors and symbolic numbers. arange, called as an operator, takes a symbolic end for a number."""
    if target is torch.ops.aten.arange.default and isinstance(args[0], torch.SymInt):
        return torch.empty(args[0], dtype=kwargs.get("dtype") or torch.int64, device=kwargs.get("device"))
    return target(*args, **kwargs)


def symbolic_size(mode: Any, name: str, hint: int) -> Any:
    """A new symbolic size in the shape environment of a fake mode, traced at `hint`.

    torch.export makes them for its inputs only; passes need more for the inputs that they add.
    """
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC], constraint_sizes=[None])
    return mode.from_tensor(torch.empty(hint), source=ConstantSource(name), symbolic_context=context).shape[0]


def without_stack_traces() -> AbstractContextManager[Any]:
    """Trace without noting for every node which Python lines made it, which takes a tenth of the time; from torch 2.13 on."""
    import torch.fx.config

    name = "do_not_emit_stack_traces"
    return mock.patch.object(torch.fx.config, name, True) if hasattr(torch.fx.config, name) else nullcontext()


def operators(function: Callable[..., Any], fakes: Sequence[Any]) -> torch.fx.Graph:
    """The ATen operators that a function of fake tensors calls, each with its fake value."""
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(function, pre_dispatch=True)(*fakes).graph


def size_checks(mode: Any, sizes: Sequence[Any]) -> Callable[[Sequence[int]], bool]:
    """Whether what was assumed of symbolic `sizes` while something was traced under `mode` holds for numbers in their place.

    Sizes are traced as two and more, so that 1 is no constant; what comes of it is right for one, too, and is not kept from it.
    """
    from torch.utils._sympy.value_ranges import ValueRanges

    environment = mode.shape_env
    for symbol, found in environment.var_to_range.items():
        if found.lower == 2:  # not where more was assumed
            environment.var_to_range[symbol] = ValueRanges(1, found.upper)
    text = environment.produce_guards_expression(sizes, ignore_static=False) or "True"
    code = compile(text, "<sizes>", "eval")
    return lambda numbers: bool(environment.evaluate_guards_expression(code, numbers))


def equal_sizes(like: torch.Tensor) -> set[str]:
    """What the shape environment of the fake tensor `like` takes for equal: sizes that met each other, or a number."""
    environment = getattr(fake_mode(like), "shape_env", None)
    if environment is None:
        return set()
    guards = (str(guard.expr) for guard in environment.guards)
    return {guard for guard in guards if guard.startswith("Eq(")} | {f"{old} = {new}" for old, new in environment.replacements.items()}
