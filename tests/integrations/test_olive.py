"""The pass for Olive, run as docs/integrations.md says: what Olive saved is an artifact that verifies and answers."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import bundled
from lightvlm_fx.errors import ArtifactError, InputError, UnknownName
from lightvlm_fx.pictures import inputs_of, open_picture
from lightvlm_fx.schedule import Schedule

pytestmark = pytest.mark.skipif(find_spec("olive") is None, reason="Olive is not installed: pip install olive-ai requests")
PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
ONCE, SEARCH, QUESTIONS = re.findall(r"^```json\n(.*?)^```$", PAGE, re.M | re.S)
[EVALUATOR] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
QUIET = {"CI": "1", "OLIVE_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}  # Olive reports nothing where CI is set


def run(command, folder):
    here = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | QUIET
    done = subprocess.run(command, cwd=folder, env=os.environ | here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page begins with."""
    folder = tmp_path_factory.mktemp("olive")
    shutil.copytree(bundled.HOME, folder / "model")
    shutil.copy(sorted(bundled.PICTURES.glob("*.png"))[0], folder / "picture.png")
    files = {"olive.json": ONCE, "search.json": SEARCH, "questions.json": QUESTIONS, "evaluator.py": EVALUATOR}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def artifact(folder):
    """What Olive saved."""
    code = """
import olive
from lightvlm_fx.integrations.olive import package_config
found = olive.run("olive.json", package_config=package_config())
print(found.get_best_candidate().model_type)
"""
    assert "lightvlmartifact" in run([sys.executable, "-c", code], folder).lower()
    return folder / "out" / "model"


def test_what_olive_saved_verifies_and_answers_as_the_compiled_model(folder, artifact):
    verdict = lightvlm.verify(artifact)
    assert verdict.exit_code == 0, verdict
    schedule = Schedule.preset("lightvlm", keep=0.35, capacity=96)
    vlm = lightvlm.load(artifact)
    assert (vlm.manifest["fingerprint"], vlm.manifest["provider"]) == (schedule.fingerprint, "cpu")
    model, processor = bundled.load()
    inputs = inputs_of(processor, "how many objects are there ?", [open_picture(folder / "picture.png")], "np")
    ours = lightvlm.compile(model, schedule, backend="eager").generate(**{k: torch.as_tensor(v) for k, v in inputs.items()})
    assert vlm.generate(**inputs).tolist() == ours.tolist()


@pytest.mark.full
def test_a_search_finds_the_keep_that_answers_best(folder):
    """By the two commands of the page; of the two ratios, each is exported and asked, and the better one is saved."""
    (folder / "package.json").write_text(run([sys.executable, "-m", "lightvlm_fx.integrations.olive"], folder), encoding="utf-8")
    run([sys.executable, "-m", "olive", "run", "--config", "search.json", "--package-config", "package.json"], folder)
    nodes = json.loads((folder / "found" / "footprint.json").read_text(encoding="utf-8")).values()
    tried = {n["pass_run_config"]["keep"]: n["metrics"]["value"] for n in nodes if n["from_pass"]}
    assert set(tried) == {0.35, 0.05}
    metrics = json.loads((folder / "found" / "input_model_metrics.json").read_text(encoding="utf-8"))
    assert metrics["answers-accuracy_score"]["value"] == 1
    right = {keep: value["answers-accuracy_score"]["value"] for keep, value in tried.items()}
    assert right[0.35] == 1
    verdict = lightvlm.verify(folder / "found" / "model")
    assert verdict.exit_code == 0, verdict
    best = min(tried, key=lambda keep: (-right[keep], tried[keep]["time-avg"]["value"]))
    manifest = json.loads((folder / "found" / "model" / "lightvlm.json").read_text(encoding="utf-8"))
    assert manifest["fingerprint"] == Schedule.preset("lightvlm", keep=best).fingerprint


# --- options, in a process of their own where Olive's imports warn ---------------------------------------------


@pytest.fixture(scope="module")
def olive():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ.setdefault("CI", "1")
        from lightvlm_fx.integrations import olive
    return olive


@pytest.fixture(scope="module")
def cpu():
    from olive.hardware.accelerator import DEFAULT_CPU_ACCELERATOR

    return DEFAULT_CPU_ACCELERATOR


def test_keep_is_searched_but_with_a_schedule_file(olive, cpu, tmp_path):
    _, _, space = olive.LightVLM.get_config_params(cpu, {})
    assert {name: x.get_support() for name, x in space.items()} == {"keep": [0.5, 0.35, 0.2, 0.1]}
    _, _, space = olive.LightVLM.get_config_params(cpu, {"keep": [0.5, 64], "dtype": ["float32", "int8"]})
    assert {name: x.get_support() for name, x in space.items()} == {"keep": [0.5, 64], "dtype": ["float32", "int8"]}
    Schedule.preset("fastv", layer=2, keep=25).save(tmp_path / "s.toml")
    _, _, space = olive.LightVLM.get_config_params(cpu, {"schedule": str(tmp_path / "s.toml")})
    assert not space


def test_options_make_the_schedule(olive, cpu, tmp_path):
    def made(point=None, **options):
        return olive._schedule(olive.LightVLM.generate_config(cpu, options, point, disable_search=point is None))

    assert made() == Schedule.preset("lightvlm")
    assert made(preset="fastv", keep=25, options={"layer": 2}) == Schedule.preset("fastv", layer=2, keep=25)
    assert made({"keep": 0.1}, keep=[0.2, 0.1]) == Schedule.preset("lightvlm", keep=0.1)
    Schedule.preset("fastv", layer=2, keep=25).save(tmp_path / "s.toml")
    assert made(schedule=str(tmp_path / "s.toml")) == made({}, schedule=str(tmp_path / "s.toml")) == Schedule.load(tmp_path / "s.toml")
    with pytest.raises(UnknownName, match="no option of preset 'none' named 'keep'"):
        made(preset="none", keep=0.5)


def test_a_changed_schedule_file_is_another_option(olive, cpu, tmp_path):
    """Olive's cache would hand out the artifact of the file as it was."""
    said = []
    for keep in (0.5, 0.25):
        Schedule.preset("fastv", keep=keep).save(tmp_path / "s.toml")
        said.append(olive.LightVLM.generate_config(cpu, {"schedule": str(tmp_path / "s.toml")}).to_json())
    assert said[0] != said[1]


def test_refuses_what_it_cannot_make(olive, cpu, tmp_path):
    from olive.hardware.accelerator import AcceleratorSpec, Device

    def accelerator(*of):
        return olive._provider(AcceleratorSpec(*of))

    assert [accelerator(Device.CPU), accelerator(Device.GPU), accelerator(Device.GPU, "TensorrtExecutionProvider")] == [
        "cpu", "cuda", "tensorrt",
    ]  # fmt: skip
    assert accelerator(Device.CPU, "OpenVINOExecutionProvider") == "cpu"
    with pytest.raises(InputError, match="not for QNNExecutionProvider"):
        accelerator(Device.NPU, "QNNExecutionProvider")
    made = olive.LightVLM(cpu, olive.LightVLM.generate_config(cpu, {"target": "torch-export"}, disable_search=True))
    with pytest.raises(InputError, match="takes a Hugging Face model"):
        made._run_for_config(object(), made.config, str(tmp_path))
    from olive.model import HfModelHandler

    with pytest.raises(InputError, match="writes no ONNX"):
        made._run_for_config(HfModelHandler(str(bundled.HOME), task="image-text-to-text"), made.config, str(tmp_path))


def test_an_artifact_is_a_composite_model_wherever_it_is_copied_to(olive, artifact, tmp_path):
    from olive.model import CompositeModelHandler, ModelConfig

    made = ModelConfig.from_json(olive.ArtifactHandler(str(artifact), {"fingerprint": "x"}).to_json())
    made.config["model_path"] = str(shutil.copytree(artifact, tmp_path / "moved"))  # as Olive saves a model
    handler = ModelConfig.from_json(made.to_json()).create_model()
    assert isinstance(handler, CompositeModelHandler)
    assert handler.model_attributes == {"fingerprint": "x"}
    found = {name: Path(model.model_path) for name, model in handler.get_model_components()}
    assert found == {name: tmp_path / "moved" / f"{name}.onnx" for name in ("vision", "embed", "prefill", "decode")}
    with pytest.raises(ArtifactError, match="no artifact"):
        olive.ArtifactHandler(str(tmp_path))


def test_the_evaluator_counts_what_is_answered_as_wanted(olive, artifact, tmp_path):
    from olive.evaluator.olive_evaluator import OliveEvaluatorConfig

    picture = sorted(bundled.PICTURES.glob("*.png"))[0]
    asked = [(answer, "how many objects are there ?") for answer in (" Eight ", "seven", "eight", "none")]
    questions = [{"image": str(picture), "question": question, "answer": answer} for answer, question in asked]
    (tmp_path / "q.json").write_text(json.dumps(questions), encoding="utf-8")
    said = json.loads(SEARCH)["evaluators"]["questions"]
    del said["user_script"]
    said["type_args"] = {"questions": str(tmp_path / "q.json"), "max_new_tokens": 8}
    config, model = OliveEvaluatorConfig(**said), olive.ArtifactHandler(str(artifact))
    found = config.create_evaluator(model).evaluate(model, config.metrics)
    assert found.get_value("answers", "accuracy_score") == 0.5
    assert found.get_value("time", "avg") > 0
    assert [found.root[key].higher_is_better for key in ("answers-accuracy_score", "time-avg")] == [True, False]
    from olive.model import HfModelHandler

    source = HfModelHandler(str(bundled.HOME), task="image-text-to-text")
    assert config.create_evaluator(source).evaluate(source, config.metrics).get_value("answers", "accuracy_score") == 0.5
    with pytest.raises(InputError, match="asks what its pass makes and Hugging Face models"):
        config.create_evaluator(model).evaluate(object(), config.metrics)
    other = OliveEvaluatorConfig(**said | {"metrics": [{"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes"}]}]})
    with pytest.raises(InputError, match="not size"):
        other.create_evaluator(model).evaluate(model, other.metrics)


def test_the_table_is_olives_own_with_one_more(olive):
    from olive.package_config import OlivePackageConfig

    from lightvlm_fx.exporters.precision import DTYPES

    table = OlivePackageConfig.model_validate(olive.package_config())
    assert set(table.passes) - set(OlivePackageConfig.load_default_config().passes) == {"lightvlm"}
    assert table.import_pass_module("LightVLM") is olive.LightVLM
    short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    assert table.passes["lightvlm"].supported_precisions == {short.get(dtype, dtype) for dtype in DTYPES}


@pytest.mark.full
def test_target_openvino_under_its_provider_is_evaluated_by_openvino(olive, tmp_path):
    pytest.importorskip("openvino")
    from olive.evaluator.olive_evaluator import OliveEvaluatorConfig
    from olive.hardware.accelerator import AcceleratorSpec, Device
    from olive.model import HfModelHandler

    spec = AcceleratorSpec(Device.CPU, "OpenVINOExecutionProvider")
    options = {"target": "openvino", "dtype": "int4", "keep": 0.5, "prompt_tokens": 192}
    made = olive.LightVLM(spec, olive.LightVLM.generate_config(spec, options, disable_search=True))
    source = HfModelHandler(str(bundled.HOME), task="image-text-to-text")
    model = made._run_for_config(source, made.config, str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "lightvlm.json").read_text(encoding="utf-8"))["target"] == "openvino"
    picture = str(sorted(bundled.PICTURES.glob("*.png"))[0])
    asked = [{"image": picture, "question": "how many objects are there ?", "answer": answer} for answer in ("eight", "seven")]
    (tmp_path / "q.json").write_text(json.dumps(asked), encoding="utf-8")
    said = json.loads(SEARCH)["evaluators"]["questions"]
    del said["user_script"]
    said["type_args"] = {"questions": str(tmp_path / "q.json"), "max_new_tokens": 8}
    config = OliveEvaluatorConfig(**said)
    found = config.create_evaluator(model).evaluate(model, config.metrics, Device.CPU, ["OpenVINOExecutionProvider"])
    assert found.get_value("answers", "accuracy_score") == 0.5
