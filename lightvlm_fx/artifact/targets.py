"""What an artifact can be for, and which package opens its stages here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """`runtime`: the package that answers, empty for none, and `title`, its name. `any_length`: graphs may have symbolic sizes.

    `instead`: what to do instead of an export in a precision that the target does not have.
    """

    runtime: str = "onnxruntime"
    title: str = "ONNX Runtime"
    any_length: bool = False
    instead: Mapping[str, str] = field(default_factory=dict)


TARGETS = {
    "onnxruntime": Target(any_length=True),
    "openvino": Target("openvino", "OpenVINO", any_length=True, instead={
        "bfloat16": "export in float32 and load with session_options={'INFERENCE_PRECISION_HINT': 'bf16'}: OpenVINO rounds by itself",
    }),
    # the same graphs on ONNX Runtime say whether they answer right
    "tensorrt": Target(instead={"int4": "export with dtype='int8'"}),
    "torch-export": Target("", "", instead=dict.fromkeys(("int8", "int4"), "its stages hold the model's own weights; quantise those")),
}  # fmt: skip
