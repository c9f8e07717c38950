"""What an artifact can be for, and which package opens its stages here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """`runtime`: the package that answers, empty for none; `any_length`: graphs may have symbolic sizes; `bfloat16`: its CPU has that."""

    runtime: str = "onnxruntime"
    any_length: bool = False
    bfloat16: bool = False


TARGETS = {
    "onnxruntime": Target(any_length=True),
    "openvino": Target("openvino", any_length=True, bfloat16=True),
    "tensorrt": Target(),  # the same graphs on ONNX Runtime say whether they answer right
    "torch-export": Target(runtime=""),
}
