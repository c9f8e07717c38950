"""What differs between releases of torch and transformers, and every private API of theirs that is used.

Each has its test in tests/core/test_compat.py, which also holds every other file of the package to public APIs. Which
releases these are: lightvlm_fx/releases.py.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from threading import get_ident
from types import FunctionType
from typing import Any
from unittest import mock

import torch
import torch.utils._pytree
from torch import nn
from torch._ops import OpOverload as OpOverload  # what torch.ops holds are public objects, but their types have no public name
from torch._ops import OpOverloadPacket as OpOverloadPacket
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode as GuardOnDataDependentSymNode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols as free_unbacked_symbols
from torch.utils._python_dispatch import _disable_current_modes

from lightvlm_fx.releases import release

pytree = torch.utils._pytree  # up to torch 2.14 there is no public one

# --- transformers ---------------------------------------------------------------------------------------

DEEPSTACK = "_deepstack_process"  # the method by which decoders of the Qwen3-VL kin add visual features; up to transformers 5.24

# Families that work, or are refused for the reason in docs/support.md, from a release on: before, aria's experts branched on
# values, fuyu took its pictures as `image_patches`, and granite4_vision read the picture at a fixed width; those of 5.24 are new.
SINCE = {"aria": (5, 18), "granite4_vision": (5, 20), "fuyu": (5, 21), "mistral_large4": (5, 22),
         "apertus1p5": (5, 24), "hy_v4_vl": (5, 24), "inkling2_loop": (5, 24)}  # fmt: skip


def cache_argument(forward: Callable[..., Any]) -> str:
    """What a decoder's forward calls its cache: `cache` from transformers 5.24 on, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def given_cache(kwargs: dict[str, Any]) -> Any:
    """The cache among the arguments of a call, under either name."""
    return kwargs["cache"] if kwargs.get("cache") is not None else kwargs.get("past_key_values")


def with_cache(output_class: type, cache: Any, **values: Any) -> Any:
    """An output of transformers that holds `cache` under the name that this release gives it."""
    name = "cache" if any(field.name == "cache" for field in fields(output_class)) else "past_key_values"
    return output_class(**values, **{name: cache})


class NoLargestLength:
    """Of a cache layer that grows without bound: how transformers asks for the most that it holds.

    `get_max_length`; transformers 5.17 to 5.19 also knew it by an older name, deprecated.
    """

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


def attention_name(module: nn.Module) -> str:
    """Which attention implementation a decoder or tower runs with.

    `config._attn_implementation` is private: transformers has no public way to read what `set_attn_implementation` sets.
    """
    return str(module.config._attn_implementation)


@contextmanager
def packed_attention(module: nn.Module, name: str) -> Iterator[None]:
    """Run a tower of packed patches with the registered attention `name`, which holds the word flash.

    Towers hand attention of such a name all patches at once; `set_attn_implementation` would look for a kernel of that name.
    """
    old = attention_name(module)
    module.config._attn_implementation = name
    try:
        yield
    finally:
        module.config._attn_implementation = old


def onnx_program(module: nn.Module, inputs: dict[str, Any], opset: int, dynamic_shapes: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """A module as an `onnx_ir.Model` with every shape known but those in `dynamic_shapes`, and what transformers' exporter noted of it.

    Public, but another method from transformers 5.23 on; before, nothing is noted (None).
    """
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    # checks of sizes that hold for all of them, but are not proven (s <= s * s), go into the traced graph, not into ONNX
    later = {"prefer_deferred_runtime_asserts_over_guards": True} if dynamic_shapes else {}
    config = OnnxConfig(dynamic=False, dynamic_shapes=dynamic_shapes, opset_version=opset, optimize=False, **later)
    exporter = OnnxExporter()
    with _transformers_patches_here():
        if hasattr(exporter, "export_program"):
            return exporter.export_program(module, inputs, config)
        return exporter.export(module, inputs, config).model, None


@contextmanager
def _transformers_patches_here() -> Iterator[None]:
    """What transformers' exporters put in the place of functions of torch and of its own is for this thread only."""
    from transformers.exporters import utils

    def patch(owner: Any, name: str, factory: Callable[[Any], Any]) -> AbstractContextManager[None]:
        def made(old: Any) -> Any:
            new = factory(old)
            return _here(new, old) if callable(old) and callable(new) else new

        return old_patch(owner, name, made)

    old_patch = utils.patch_attribute
    with mock.patch.object(utils, "patch_attribute", patch):
        yield


def sort(x: torch.Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """A stable `torch.sort` for an exporter. The one of transformers 5.17 always sorts upwards: what is negated, there."""
    if not descending or release("transformers") >= (5, 18):
        return torch.sort(x, dim=dim, descending=descending, stable=True)
    values, index = torch.sort(-x, dim=dim, stable=True)
    return torch.return_types.sort((-values, index))


# --- torch: modules and ops -----------------------------------------------------------------------------

# checks that torch.export writes into its graphs, operators of ATen without a public name
ASSERT_METADATA = torch.ops.aten._assert_tensor_metadata.default
ASSERT_SCALAR = torch.ops.aten._assert_scalar.default


def shallow(module: nn.Module) -> nn.Module:
    """A module of the same class over the same children and parameters, with tables of its own, which are private."""
    twin = copy.copy(module)
    for table in ("_modules", "_parameters", "_buffers", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
        twin.__dict__[table] = copy.copy(twin.__dict__[table])
    return twin


def hooks(module: nn.Module) -> list[Any]:
    """What runs before and after a module's forward, which torch keeps to itself."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def own_configs(module: nn.Module) -> nn.Module:
    """A copy of a module and all its children over the same parameters and buffers, whose configs and hooks are its own.

    Attention reads its implementation from a config that a whole model shares. transformers adds hooks that collect hidden states to
    a model that is first asked for them: added to the copy, they must not stand in the source, which would add them once more.
    """
    configs: dict[int, Any] = {}
    modules: dict[int, nn.Module] = {}

    def copied(old: nn.Module) -> nn.Module:
        if id(old) not in modules:
            modules[id(old)] = twin = shallow(old)
            for table in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
                twin.__dict__[table] = copy.copy(twin.__dict__[table])
            if "config" in vars(twin):
                twin.config = copy.deepcopy(twin.config, configs)
            for name, child in twin._modules.items():
                twin._modules[name] = child and copied(child)
        return modules[id(old)]

    return copied(module)


def body(op: torch.library.CustomOpDef) -> tuple[OpOverload, Callable[..., Any]]:
    """A custom operator as it stands in graphs, and the Python function behind it, which torch.library keeps to itself."""
    return op._opoverload, op._init_fn


def schema(target: Any) -> Any:
    """Name and arguments of an operator, None of anything else that a graph calls."""
    return getattr(target, "_schema", None)


def for_real() -> AbstractContextManager[Any]:
    """Inside a trace, compute with real numbers: for what no input reaches. torch has no public way."""
    return _disable_current_modes()


# --- torch: threads -------------------------------------------------------------------------------------

_tracing = False


@contextmanager
def tracing() -> Iterator[None]:
    """One thread at a time traces, rewrites or compiles graphs, and the others run as if none did. Also a decorator, and re-entrant.

    While it traces, torch changes for the whole process how modules are called and how they find their attributes, what it says of
    itself, and what symbolic sizes do. Seen on torch 2.11, 2.13 and 2.14. The lock is torch.compile's own, so that what users compile
    waits too; torch.export, called elsewhere in another thread, does not.
    """
    from torch._dynamo.convert_frame import compile_lock
    from torch.export import _trace  # switches oneDNN, NNPACK and cuDNN off, by which others compute, and which round otherwise
    from transformers.utils import output_capturing  # has one collector of outputs for all threads while anything is traced

    with compile_lock, ExitStack() as stack:
        if not _tracing:
            for function in (torch.compiler.is_compiling, torch.compiler.is_exporting, torch.fx._symbolic_trace.is_fx_symbolic_tracing):
                stack.enter_context(_false_elsewhere(function))
            stack.enter_context(_modules_patched_here())
            stack.enter_context(mock.patch.object(output_capturing, "is_torchdynamo_compiling", bool))  # False
            stack.enter_context(mock.patch.object(_trace, "_ignore_backend_decomps", nullcontext))
            stack.enter_context(mock.patch(f"{__name__}._tracing", True))
        yield


def _here(function: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """`function` in this thread, `elsewhere` in all others."""
    own = get_ident()

    @functools.wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (function if get_ident() == own else elsewhere)(*args, **kwargs)

    return either


@contextmanager
def _modules_patched_here() -> Iterator[None]:
    """What torch.fx puts in the place of `nn.Module.__call__` and `__getattr__` is for this thread only."""
    patcher = torch.fx._symbolic_trace._Patcher

    def patch_method(self: Any, owner: type, name: str, new: Callable[..., Any], deduplicate: bool = True) -> None:
        old_patch(self, owner, name, _here(new, getattr(owner, name)), deduplicate)

    old_patch = patcher.patch_method
    with mock.patch.object(patcher, "patch_method", patch_method):
        yield


@contextmanager
def _false_elsewhere(function: Any) -> Iterator[None]:
    """A function without arguments says False in all threads but this one.

    Its code changes, not the object, which others hold and torch.compile knows it by.
    """
    code, same = function.__code__, FunctionType(function.__code__, function.__globals__)

    def either(own: int = get_ident(), here: Callable[[], int] = get_ident, same: Callable[[], bool] = same) -> bool:
        return here() == own and same()

    function.__defaults__ = either.__defaults__  # first: the old code takes no arguments, the new one needs them
    function.__code__ = either.__code__
    try:
        yield
    finally:
        function.__code__ = code
        function.__defaults__ = None


# --- torch: symbolic sizes ------------------------------------------------------------------------------


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
    """Whether what was assumed of symbolic `sizes` while something was traced under `mode` holds for numbers in their place."""
    environment = mode.shape_env
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


# --- torch.compile --------------------------------------------------------------------------------------


def maybe_dynamic(x: torch.Tensor, dim: int) -> None:
    """Tell torch.compile to keep a dimension symbolic where it can. `torch.compiler` has no public way."""
    import torch._dynamo

    torch._dynamo.maybe_mark_dynamic(x, dim)


def compiled_graphs() -> int:
    """How many graphs torch.compile has compiled in this process (those of `ByLayer` are not among them)."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def aoti_compile(exported: torch.export.ExportedProgram, path: Path) -> None:
    """Write a package of AOTInductor, whose documented entry stands in a private module."""
    import torch._inductor

    torch._inductor.aoti_compile_and_package(exported, package_path=str(path))


def inductor(graph: torch.fx.GraphModule, inputs: list[Any], mode: Any) -> Callable[..., Any]:
    """What inductor makes of a graph, whose outputs are a tuple, for fake inputs of `mode`; conditions on sizes are noted there."""
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx

    with tracing(TracingContext(mode)):
        compiled: Any = compile_fx(graph, inputs)
    return compiled


def packed_weight(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """`weight` [m, n] in the layout that oneDNN wants for a product of so many rows."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed


def packed_product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """F.linear of a packed weight. torch has no public operators for these two."""
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")
    return out


def packs_bfloat16() -> bool:
    """Whether oneDNN has products of bfloat16 on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
