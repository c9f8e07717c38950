"""Ops as what they are made of, for back ends that know ATen only."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightvlm_fx import ops
from lightvlm_fx.compat import OpOverload, OpOverloadPacket, body, sort


@cache
def bodies() -> dict[Any, Callable[..., Any]]:
    """The Python function behind every `torch.ops.lightvlm` operator that was registered so far; `derived` adds to it."""
    found: dict[Any, Callable[..., Any]] = {}
    for module in pkgutil.iter_modules(ops.__path__):
        for thing in vars(importlib.import_module(f"{ops.__name__}.{module.name}")).values():
            if isinstance(thing, torch.library.CustomOpDef):
                found |= dict([body(thing)])
    return found


def derived(name: str, schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> OpOverload:
    """Register an operator of a schema of its own, whose result on fake tensors `fake` gives."""
    op = torch.library.custom_op(name, function, mutates_args=(), schema=schema)
    op.register_fake(fake)
    overload, traced = body(op)
    bodies()[overload] = traced
    return overload


class InAten(TorchFunctionMode):
    """While active, a traced `lightvlm` op leaves its body's ATen calls in the graph.

    An argsort is written as the sort that exporters know, attention masks are additive and finite. So that cache writes
    stay in place in an exported graph, they are scatters along the buffers' own axis: an index_copy would become a
    scatter over transposed buffers, which copies them. So are index_adds: exporters make a ScatterND of them, whose threads
    overwrite each other's sums in ONNX Runtime where indices repeat (microsoft/onnxruntime#23396), and merges repeat them.
    Whole numbers are padded by concatenation: ONNX Runtime's CUDA provider has no Pad of them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in bodies():
            with self:  # bodies call each other's ops
                return bodies()[func](*args, **kwargs)
        if isinstance(func, OpOverloadPacket) and getattr(func, "default", None) in bodies():
            with self:
                return bodies()[func.default](*args, **kwargs)
        if name == "index_copy_":
            x, dim, index, source = args
            return x.scatter_(dim, _along(index, dim, source), source)
        if name == "index_add_":
            x, dim, index, source = args
            return x.scatter_add_(dim, _along(index, dim, source), source)
        if name == "index_fill_":
            x, dim, index, fill = args
            shape = [*x.shape[:dim], index.shape[0], *x.shape[dim + 1 :]]
            return x.scatter_(dim, _along(index, dim, x.new_empty(shape)), fill)
        if name == "pad":
            given = {"mode": "constant", "value": None} | dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
            if given["mode"] == "constant" and not given["input"].is_floating_point() and not any(given["pad"][2:]):
                return _padded(given["input"], given["pad"], given["value"] or 0)
        if name == "argsort":
            return sort(*args, **kwargs).indices
        if name == "sort" and kwargs.get("stable"):
            return sort(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            kwargs = dict(zip(names, args, strict=False)) | kwargs
            if kwargs.get("attn_mask") is not None:
                kwargs["attn_mask"] = _whole(kwargs["attn_mask"], kwargs["query"], kwargs["key"])
            return func(**kwargs)
        return func(*args, **kwargs)


class InPortableAten(InAten):
    """InAten of what ExecuTorch's portable kernels know, too: sorts as top-k, and nothing uninitialised in the strides of another."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0]  # or an overload's: packed towers are traced a second time
        if name in PORTABLY:
            return PORTABLY[name](*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def by_top_k(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """A stable sort as two top-k: of the numbers, for each one's rank by value, and of rank and place as one whole number, all distinct.

    Exact, but that NaNs, which equal nothing, may come in another order among themselves.
    """
    if dim not in (-1, x.ndim - 1):
        return torch.return_types.sort([y.transpose(dim, -1) for y in by_top_k(x.transpose(dim, -1), -1, descending)])
    count = x.shape[-1]
    values, at = x.topk(count, largest=descending)
    same = torch.cat([torch.ones_like(at[..., :1]), (values[..., 1:] == values[..., :-1]).long()], -1)
    rank = torch.zeros_like(at).scatter(-1, at, (1 - same).cumsum(-1))
    at = (rank * count + torch.arange(count, device=x.device)).topk(count, largest=False).indices
    return torch.return_types.sort((x.gather(-1, at), at))


PORTABLY: dict[str, Callable[..., Any]] = {
    "sort": by_top_k, "argsort": lambda x, *args, **kwargs: by_top_k(x, *args, **kwargs).indices,
    "empty_like": lambda x, **kwargs: x.new_empty(x.shape, **kwargs),
}  # fmt: skip


def _whole(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """An attention mask as ONNX's Attention takes it: additive, finite (a padding token sees nothing), one row a query."""
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, torch.finfo(q.dtype).min).to(q.dtype)
    return mask.expand(*mask.shape[:-2], q.shape[-2], k.shape[-2])


def _padded(x: Tensor, room: Sequence[int], value: float) -> Tensor:
    """`x` with its last axis extended on both sides by `value`."""
    before, after = (x.new_full((*x.shape[:-1], n), value) for n in room[:2])
    return torch.cat([before, x, after], -1)


def _along(index: Tensor, dim: int, like: Tensor) -> Tensor:
    """`index` [n] along `dim`, expanded to the shape of `like`."""
    shape = [1] * like.ndim
    shape[dim] = -1
    return index.view(shape).expand(like.shape)
