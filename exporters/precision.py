"""Other precisions than float32: half-precision stages, and weights as integers by ONNX Runtime's own tool."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch

from lightvlm_fx.errors import NotSupported
from lightvlm_fx.exporters.values import initializer, new, swap
from lightvlm_fx.quiet import quiet

DTYPES = ("float32", "float16", "bfloat16", "int8", "int4")
BITS = {"int8": 8, "int4": 4}  # of a weight
BLOCK = 32  # weights that share a scale
LIKE_WEIGHTS = 4  # the accuracy level at which activations are rounded to 8 bits a block as well: products of integers
BLOCKS_SINCE = 21  # opset of a DequantizeLinear with blocks


def cast(model: Any, dtype: str) -> Any:
    """`model` itself, or a copy of it in half precision. Scores and merges accumulate in float32 either way."""
    wanted = getattr(torch, dtype) if dtype in ("float16", "bfloat16") else torch.float32
    return model if model.dtype == wanted else copy.deepcopy(model).to(wanted)


def quantise(graph: ir.Model, dtype: str) -> ir.Model:
    """`graph` with every weight matrix in blocks of integers of `dtype`, int8 or int4, multiplied by MatMulNBits.

    Raises NotSupported where onnxruntime, whose tool this is, is missing.
    """
    with _quiet():
        try:
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        except ImportError as error:
            raise NotSupported(f"dtype={dtype!r} needs onnxruntime's quantiser; install onnxruntime") from error
        how = {"bits": BITS[dtype], "block_size": BLOCK, "is_symmetric": True, "accuracy_level": LIKE_WEIGHTS}
        quantiser = MatMulNBitsQuantizer(ir.to_proto(graph), **how)
        quantiser.process()
    return ir.from_proto(quantiser.model.model)


def in_standard_operators(graph: ir.Model) -> int:
    """Replace every MatMulNBits over 8 bits by DequantizeLinear and MatMul. Returns how many there were.

    DequantizeLinear has blocks since opset 21, which the graph is stamped with.
    """
    nodes = [n for n in graph.graph if n.op_type == "MatMulNBits"]
    for node in nodes:
        x, packed, scales = (v for v in node.inputs[:3] if v is not None)
        k, block = node.attributes["K"].as_int(), node.attributes["block_size"].as_int()
        codes, steps = _positive_scales(packed.const_value.numpy(), scales.const_value.numpy())
        whole = initializer(graph, f"{packed.name}.signed", codes[:, :k].T)
        by_block = initializer(graph, f"{scales.name}.positive", steps.T)
        weight = new("DequantizeLinear", [whole, by_block], [k, len(codes)], scales, axis=0, block_size=block)
        swap(graph, [node], [weight, new("MatMul", [x, weight], [int(d) for d in node.outputs[0].shape], scales)])
    if nodes:
        graph.opset_imports[""] = max(graph.opset_imports[""], BLOCKS_SINCE)
    common.RemoveUnusedNodesPass()(graph)
    common.RemoveUnusedOpsetsPass()(graph)
    return len(nodes)


def _positive_scales(packed: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MatMulNBits's codes [N, blocks, block] around 128 as signed ones [N, K'], and scales [N, blocks] that are all positive.

    The tool's codes reach to -128, with a negative scale where the largest weight is positive; TensorRT wants none, so
    those blocks are rounded anew to codes of at most 127.
    """
    codes, steps = packed.astype(np.float32) - 128, scales.reshape(packed.shape[:2]).astype(np.float32)
    turned = (steps < 0)[..., None]
    codes = np.where(turned, np.rint(codes * (-127 / 128)), codes)
    steps = np.where(steps < 0, steps * (-128 / 127), np.where(steps == 0, 1, steps))
    return codes.astype(np.int8).reshape(len(packed), -1), steps.astype(scales.dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Importing the quantiser sets up the root logger of whoever calls, and every node is a line: undo and mute that."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with quiet():
            yield
    finally:
        root.handlers[:], root.level = handlers, level
