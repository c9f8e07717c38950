"""A backend of transformers' exporters: `AutoHfExporter.from_config(LightVLMConfig(schedule=...))`.

Importing this module registers it under the format "lightvlm". Its components are the stages of an artifact, as
`onnx_ir.Model`s; `lightvlm.export` writes the same stages with one weight file, hashes and samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

try:
    from transformers.exporters.auto import register_backend
    from transformers.exporters.base import ExportedComponent, ExportedModel
    from transformers.exporters.metadata import ExportMetadata
except ImportError as error:
    raise ImportError(
        f"transformers {transformers.__version__} takes no backends for its exporters; 5.23 and later do (lightvlm.export needs none)"
    ) from error

from lightvlm_fx.errors import NotSupported
from lightvlm_fx.exporters.onnx_graph import OPSET, to_onnx_with_metadata
from lightvlm_fx.exporters.order import least_first
from lightvlm_fx.exporting.build import build
from lightvlm_fx.model.locate import check_supported, decoder_path
from lightvlm_fx.model.whole import refuse_parts
from lightvlm_fx.releases import warn_of_untested
from lightvlm_fx.schedule import as_schedule

FORMAT = "lightvlm"


@dataclass
class LightVLMConfig(OnnxConfig):
    """`schedule`: a preset's name or the path of a schedule file. The others as in `lightvlm.export`, for onnxruntime."""

    export_format: str = FORMAT
    schedule: str = "lightvlm"
    prompt_tokens: int | None = None
    new_tokens: int = 256
    images: int | None = None


class LightVLMExporter(OnnxExporter):
    """Stages under a schedule. Only `export_for_generation` means anything: a schedule is about answering."""

    export_format = FORMAT
    config_class = LightVLMConfig

    def export_program(self, model: Any, sample_inputs: Any, config: Any) -> tuple[Any, ExportMetadata]:
        """Raises NotSupported: one forward pass has no schedule."""
        raise NotSupported("the lightvlm backend exports what generate() needs; call export_for_generation(model, inputs, config)")

    def export_for_generation(self, model: Any, sample_inputs: Mapping[str, Any], config: Any, **options: Any) -> ExportedModel:
        """The stages as components: vision, embed, prefill, decode, and compact where the schedule has it.

        Raises what `lightvlm.export` raises, and TypeError for another backend's config.
        """
        config = LightVLMConfig(**config) if isinstance(config, dict) else config
        if not isinstance(config, LightVLMConfig):
            raise TypeError(f"expected a LightVLMConfig, got {type(config).__name__}")
        warn_of_untested()
        check_supported(model)
        refuse_parts(model, decoder_path(model))
        inputs = dict(sample_inputs)
        length = config.prompt_tokens or inputs["input_ids"].shape[1] + 64
        built = build(model, as_schedule(config.schedule), inputs, length, config.new_tokens, images=config.images)
        components = {}
        for name, stage in built.stages.items():
            graph, metadata = to_onnx_with_metadata(name, stage.module, stage.inputs, config.opset_version or OPSET, dynamic=stage.dynamic)
            if name == "prefill":
                least_first(graph)
            components[name] = ExportedComponent(graph, metadata)
        return ExportedModel(components, FORMAT, config=model.config, generation_config=model.generation_config)


def register() -> None:
    """Make the backend known to transformers; again is harmless."""
    from transformers.exporters import auto

    if FORMAT not in auto.EXPORT_BACKENDS:
        register_backend(LightVLMExporter)


register()
