"""Other precisions than float32: half-precision stages, and weights as 8-bit integers by ONNX Runtime's own tool."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch

from lightvlm_fx.errors import NotSupported

DTYPES = ("float32", "float16", "bfloat16", "int8")
BLOCK = 32  # weights that share a scale


def cast(model: Any, dtype: str) -> Any:
    """`model` itself, or a copy of it in half precision. Scores and merges accumulate in float32 either way."""
    wanted = getattr(torch, dtype) if dtype in ("float16", "bfloat16") else torch.float32
    return model if model.dtype == wanted else copy.deepcopy(model).to(wanted)


def quantise(graph: ir.Model) -> ir.Model:
    """`graph` with every weight matrix in blocks of 8-bit integers, multiplied by MatMulNBits (weights only).

    Raises NotSupported where onnxruntime, whose tool this is, is missing.
    """
    with _quiet():
        try:
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        except ImportError as error:
            raise NotSupported("dtype='int8' needs onnxruntime's quantiser; install onnxruntime") from error
        quantiser = MatMulNBitsQuantizer(ir.to_proto(graph), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=1)
        quantiser.process()
    return ir.from_proto(quantiser.model.model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Importing the quantiser sets up the root logger of whoever calls, and every node is a line: undo and mute that."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
        logging.disable(logging.NOTSET)
