"""torch.compile, inductor, and oneDNN's packed weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def maybe_dynamic(x: torch.Tensor, dim: int) -> None:
    """Tell torch.compile to keep a dimension symbolic where it can. `torch.compiler` has no public way."""
    import torch._dynamo

    torch._dynamo.maybe_mark_dynamic(x, dim)


def compiled_graphs() -> int:
    """How many graphs torch.compile has compiled in this process (those of `ByLayer` are not among them)."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def skipped_cuda_graphs() -> int:
    """How many graphs of this process inductor runs without the CUDA graphs that were asked for."""
    from torch._dynamo.utils import counters

    return counters["inductor"]["cudagraph_skips"]


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


def flash_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel behind scaled_dot_product_attention on a processor, for q, k, v [B, H, S, d]: its result, and the logarithm [B, H, S] of
    each row's sum of exponentials. Causal where no mask [B, 1, S, S] is given. torch has no public operator for both.
    """
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    elif mask is not None:
        mask = mask.to(q.dtype)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    out, norm = flash(q, k, v, 0.0, mask is None, attn_mask=mask, scale=scale)
    return out, norm


def packs_bfloat16() -> bool:
    """Whether oneDNN has products of bfloat16 on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
