"""One thread traces, and the others run as if none did."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from threading import get_ident
from types import FunctionType
from typing import Any
from unittest import mock

import torch

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


@contextmanager
def patches_here() -> Iterator[None]:
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
