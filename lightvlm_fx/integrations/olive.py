"""A pass of Olive (olive-ai): a Hugging Face vision-language model in, an artifact out; and an evaluator, so that runs can search.

`python -m lightvlm_fx.integrations.olive > package.json` writes the table of passes for `olive run --package-config package.json`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from olive.evaluator.metric import Metric, MetricType
from olive.evaluator.metric_result import MetricResult, flatten_metric_result
from olive.evaluator.olive_evaluator import OliveEvaluator
from olive.evaluator.registry import Registry
from olive.hardware.accelerator import AcceleratorSpec, Device
from olive.model import CompositeModelHandler, HfModelHandler, ONNXModelHandler
from olive.model.config.registry import model_handler_registry
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.search.search_parameter import Categorical, Conditional
from pydantic import field_validator

from lightvlm_fx.artifact.load import load
from lightvlm_fx.artifact.manifest import read
from lightvlm_fx.artifact.targets import TARGETS
from lightvlm_fx.errors import InputError
from lightvlm_fx.exporting.example import example
from lightvlm_fx.exporting.export import export
from lightvlm_fx.pictures import inputs_of, open_picture, processor_of
from lightvlm_fx.schedule import Schedule

PROVIDERS = {"CPUExecutionProvider": "cpu", "OpenVINOExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda",
             "TensorrtExecutionProvider": "tensorrt"}  # fmt: skip


@model_handler_registry("LightVLMArtifact")
class ArtifactHandler(CompositeModelHandler):
    """An artifact as a composite model, a component a stage of its first bucket.

    A type of its own: of Olive's CompositeModel every graph and its weights are written anew when it is saved, and none is evaluated.
    Olive saves this one as what it is, a folder, which `lightvlm verify` and `lightvlm.load` take. Raises ArtifactError for another.
    """

    json_config_keys = ()

    def __init__(self, model_path: Any, model_attributes: dict[str, Any] | None = None) -> None:
        folder = getattr(model_path, "get_path", lambda: model_path)()
        files = {name: stage["file"] for name, stage in read(folder)["buckets"][0]["stages"].items()}
        stages = [ONNXModelHandler(str(folder), onnx_file_name=file) for file in files.values()]
        super().__init__(stages, list(files), model_path=model_path, model_attributes=model_attributes)

    def to_json(self, check_object: bool = False) -> dict[str, Any]:
        """Without components, which stand in the folder, wherever it is copied to."""
        found: dict[str, Any] = super(CompositeModelHandler, self).to_json(check_object)
        return found


class LightVLM(Pass):
    """Cuts of visual tokens and bounded caches, written as ONNX graphs: what `lightvlm export` does, as a pass.

    Its output is an ArtifactHandler, which Olive saves as the folder `model` of its own output.
    """

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """Graphs are made for an execution provider."""
        return False

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        ratios, ignored = Categorical([0.5, 0.35, 0.2, 0.1]), Conditional.get_ignored_choice()

        def option(kind: Any, default: Any, says: str, search: Any = None) -> PassConfigParam:
            return PassConfigParam(type_=kind, default_value=default, search_defaults=search, description=says)

        return {
            "keep": option(int | float, None, "Visual tokens left: a ratio or a count; default: the preset's.",
                           Conditional(("schedule",), {(None,): ratios}, ignored)),
            "preset": option(str, "lightvlm", "Preset, see `lightvlm presets`.", Categorical(["lightvlm"])),
            "options": option(dict, None, "Other options of the preset, as in {'capacity': 96}."),
            "schedule": option(str, None, "Schedule file (TOML); replaces preset, keep and options."),
            "target": option(str, "onnxruntime", "onnxruntime, openvino or tensorrt."),
            "dtype": option(str, "float32", "float32, float16, bfloat16; int8 or int4: of the decoder's weights, which ONNX Runtime "
                            "multiplies by activations of 8 bits.", Categorical(["float32"])),
            "image": option(str, None, "Example picture, the largest that will come; default: one of the size that the processor prefers."),
            "images": option(int, None, "Most pictures of a prompt; default: 4."),
            "rows": option(int, 1, "Rows of a batch."),
            "prompt_tokens": option(int, None, "Longest prompt, with pictures; default: the example and 64."),
            "new_tokens": option(int, 256, "Longest answer, where the schedule does not bound the cache."),
        }  # fmt: skip

    @classmethod
    def _validators(cls) -> dict[str, Any]:
        return {"what_the_file_says": field_validator("schedule", mode="before")(_contents)}

    def _run_for_config(self, model: Any, config: BasePassConfig, output_model_path: str) -> ArtifactHandler:
        if not isinstance(model, HfModelHandler):
            raise InputError(f"the pass LightVLM takes a Hugging Face model (type HfModel), got {type(model).__name__}: put it first")
        if not TARGETS[config.target].onnx:
            raise InputError(f"target {config.target!r} writes no ONNX, which Olive's models here are: use `lightvlm export`")
        processor = _processor(model)
        pictures = None if config.image is None else [open_picture(config.image)]
        made = export(
            model.load_model(cache_model=False).eval(), _schedule(config), output_model_path, target=config.target, dtype=config.dtype,
            inputs=example(processor, pictures, rows=config.rows), processor=processor, images=config.images,
            prompt_tokens=config.prompt_tokens, new_tokens=config.new_tokens, provider=_provider(self.accelerator_spec),
        )  # fmt: skip
        return ArtifactHandler(str(made.path), {"fingerprint": made.manifest["fingerprint"]})


@Registry.register("LightVLM")
class Questions(OliveEvaluator):
    """Asks about pictures: for metrics of type `accuracy` the share answered as wanted, for `latency` mean milliseconds of an answer.

    For artifacts, and for the Hugging Face model itself, uncompiled, to which goals such as `max-degradation` compare. `questions` is a
    JSON file, [{"image": path, "question": text, "answer": text}, ...]; capitals and white space around are one.
    """

    def __init__(self, questions: str, max_new_tokens: int | None = None) -> None:
        super().__init__()
        self.questions, self.max_new_tokens = json.loads(Path(questions).read_text(encoding="utf-8")), max_new_tokens

    def evaluate(
        self, model: Any, metrics: list[Metric], device: Any = Device.CPU, execution_providers: str | list[str] | None = None
    ) -> MetricResult:
        """Raises InputError for another model, and for metrics of other types."""
        wrong = [metric.name for metric in metrics if metric.type not in (MetricType.ACCURACY, MetricType.LATENCY)]
        if wrong:
            raise InputError(f"the evaluator LightVLM knows metrics of type accuracy and latency, not {', '.join(wrong)}")
        if isinstance(model, HfModelHandler):
            source = model.load_model(cache_model=False).eval()
            found = self._measured(source.generate, _processor(model), "pt", source.dtype)
        elif isinstance(model, ArtifactHandler):
            providers = execution_providers or "CPUExecutionProvider"
            if TARGETS[read(model.model_path)["target"]].runtime == "openvino":
                providers = str(device).upper()  # OpenVINO's own name of it
            vlm = load(model.model_path, providers=[providers] if isinstance(providers, str) else providers)
            found = self._measured(vlm.generate, processor_of(vlm), "np")
        else:
            raise InputError(f"the evaluator LightVLM asks what its pass makes and Hugging Face models, got {type(model).__name__}")
        return flatten_metric_result({metric.name: {
            sub.name: {"value": found[metric.type], "priority": sub.priority, "higher_is_better": metric.type == MetricType.ACCURACY}
            for sub in metric.sub_types
        } for metric in metrics})  # fmt: skip

    def _measured(self, generate: Any, processor: Any, tensors: str, dtype: Any = None) -> dict[str, float]:
        """Accuracy and latency of what answers; pictures get the type `dtype`, if any."""
        right, seconds = 0, 0.0
        for item in self.questions:
            inputs = inputs_of(processor, item["question"], [open_picture(item["image"])], tensors)
            if dtype is not None:
                inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
            if not seconds:
                generate(**inputs, max_new_tokens=1)  # opens sessions
            start = time.perf_counter()
            tokens = generate(**inputs, max_new_tokens=self.max_new_tokens)[:, inputs["input_ids"].shape[1] :]
            seconds += time.perf_counter() - start
            said = processor.batch_decode(tokens, skip_special_tokens=True)[0]
            right += said.strip().casefold() == item["answer"].strip().casefold()
        return {MetricType.ACCURACY: right / len(self.questions), MetricType.LATENCY: 1000 * seconds / len(self.questions)}


def _processor(model: HfModelHandler) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model.model_name_or_path, trust_remote_code=model.get_load_kwargs().get("trust_remote_code"))


def _contents(schedule: str | None) -> str | None:
    """JSON of a schedule file: Olive's cache asks whether options are the same, and a file of the same name may say something else."""
    if schedule is None or schedule.startswith("{"):
        return schedule
    return Schedule.load(schedule).model_dump_json()


def _schedule(config: BasePassConfig) -> Schedule:
    if config.schedule is not None:
        return Schedule(**json.loads(config.schedule))
    keep = {} if config.keep is None else {"keep": config.keep}
    return Schedule.preset(config.preset, **keep, **(config.options or {}))


def _provider(accelerator: AcceleratorSpec) -> str:
    """What graphs are made for; Olive names no provider where neither the run's target nor an evaluator does."""
    named = accelerator.execution_provider
    if named is None:
        return "cuda" if accelerator.accelerator_type == Device.GPU else "cpu"
    if named not in PROVIDERS:
        raise InputError(f"the pass LightVLM makes graphs for {', '.join(PROVIDERS)}, not for {named}")
    return PROVIDERS[named]


def package_config() -> dict[str, Any]:
    """Olive's own table of passes with LightVLM in it, for `olive.run(..., package_config=...)`, which takes the place of Olive's."""
    table = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    table["passes"][LightVLM.__name__] = {
        "module_path": "lightvlm_fx.integrations.olive.LightVLM", "supported_providers": list(PROVIDERS),
        "supported_accelerators": ["cpu", "gpu"], "supported_precisions": ["fp32", "fp16", "bf16", "int8", "int4"],
    }  # fmt: skip
    return table


if __name__ == "__main__":
    print(json.dumps(package_config(), indent=1))
