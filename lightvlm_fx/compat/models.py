"""transformers: what its decoders, caches and exporter are called, and how they are set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from lightvlm_fx.compat.threads import patches_here
from lightvlm_fx.releases import release

DEEPSTACK = "_deepstack_process"  # the method by which decoders of the Qwen3-VL kin add visual features; up to transformers 5.24

# Families that work, or are refused for the reason in docs/support.md, from a release on: before, aria's experts branched on
# values, fuyu took its pictures as `image_patches`, and granite4_vision read the picture at a fixed width; those of 5.24 are new.
SINCE = {"aria": (5, 18), "granite4_vision": (5, 20), "fuyu": (5, 21), "mistral_large4": (5, 22),
         "apertus1p5": (5, 24), "hy_v4_vl": (5, 24), "inkling2_loop": (5, 24)}  # fmt: skip


def cache_argument(forward: Callable[..., Any]) -> str:
    """What a decoder's forward calls its cache: `cache` from transformers 5.24 on, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def given_cache(named: Mapping[str, Any]) -> Any:
    """The cache among the arguments or the results of a call, under either name."""
    return named["cache"] if named.get("cache") is not None else named.get("past_key_values")


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
    with patches_here():
        if hasattr(exporter, "export_program"):
            return exporter.export_program(module, inputs, config)
        return exporter.export(module, inputs, config).model, None


def sort(x: torch.Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """A stable `torch.sort` for an exporter. The one of transformers 5.17 always sorts upwards: what is negated, there."""
    if not descending or release("transformers") >= (5, 18):
        return torch.sort(x, dim=dim, descending=descending, stable=True)
    values, index = torch.sort(-x, dim=dim, stable=True)
    return torch.return_types.sort((-values, index))
