"""One stage as an ONNX graph, through transformers' own exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import onnx_ir as ir
import torch
from torch import Tensor, nn

from lightvlm_fx.errors import CaptureError
from lightvlm_fx.ops.bodies import InAten

OPSET = 24


def to_onnx(name: str, module: nn.Module, inputs: dict[str, Tensor], outputs: dict[str, Tensor], opset: int = OPSET) -> ir.Model:
    """`module(**inputs)`, whose result names its `outputs`, as a model with every shape known.

    Raises CaptureError naming the stage, with the exporter's own error as its cause.
    """
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    with warnings.catch_warnings(), torch.no_grad(), InAten(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            model, _ = OnnxExporter().export_program(module, dict(inputs), OnnxConfig(dynamic=False, opset_version=opset, optimize=True))
        except Exception as error:
            raise CaptureError(f"stage {name!r} could not be exported to ONNX: {type(error).__name__}: {str(error)[:2000]}") from error
        finally:
            logging.disable(logging.NOTSET)
    return model
