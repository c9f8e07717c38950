"""torch: the tables of its modules, and what stands behind its operators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.utils._pytree
from torch import nn
from torch._ops import OpOverload as OpOverload  # what torch.ops holds are public objects, but their types have no public name
from torch._ops import OpOverloadPacket as OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes

pytree = torch.utils._pytree  # up to torch 2.14 there is no public one

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
