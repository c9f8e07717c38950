"""`lightvlm package`: what it writes is what Triton's and KServe's own schemas take, and answers as the artifact does.

Neither server runs here: Triton's python backend is stood in for by triton_python_backend_utils.py beside this file, and the
command in KServe's file is run as it stands, but for its folder and port.
"""

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import triton_python_backend_utils as pb_utils
import yaml
from served import ask, picture, until

import lightvlm_fx as lightvlm
from lightvlm_fx import bundled
from lightvlm_fx.artifact.verify import verify
from lightvlm_fx.errors import ArtifactError, InputError
from lightvlm_fx.exporting.example import example
from lightvlm_fx.integrations import deploy
from lightvlm_fx.pictures import inputs_of, open_picture

pytestmark = pytest.mark.full  # an export of the bundled model, and processes that serve it

PICTURE = sorted(bundled.PICTURES.glob("*.png"))[0]
QUESTION = PICTURE.with_suffix(".txt").read_text(encoding="utf-8").splitlines()[0]
CODED = base64.b64encode(PICTURE.read_bytes())
COMMAND = [sys.executable, "-m", "lightvlm_fx"]
WITHOUT_TORCH = [sys.executable, "-c", "import sys; sys.modules['torch'] = None; from lightvlm_fx.cli.main import main; main()"]


@pytest.fixture(scope="module")
def source():
    return bundled.load()


@pytest.fixture(scope="module")
def artifact(source, tmp_path_factory):
    model, processor = source
    folder = tmp_path_factory.mktemp("deployed") / "bundled"
    lightvlm.export(model, "lightvlm", folder, inputs=example(processor), processor=processor)
    return folder


@pytest.fixture(scope="module")
def answer(artifact, source):
    """Tokens and text of the artifact itself."""
    processor = source[1]
    inputs = inputs_of(processor, QUESTION, [open_picture(PICTURE)], "np")
    tokens = lightvlm.load(artifact).generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    return tokens.tolist(), processor.decode(tokens, skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def repository(artifact, tmp_path_factory):
    """A model repository, written by the command."""
    folder = tmp_path_factory.mktemp("triton") / "models"
    call = [*WITHOUT_TORCH, "package", artifact, "--for", "triton", "-o", folder]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(folder / "bundled"), "")
    return folder


@pytest.fixture(scope="module")
def model(repository):
    """The model as Triton loads it: `model.py` from its folder, `initialize` with what is in config.pbtxt."""
    spec = importlib.util.spec_from_file_location("model", repository / "bundled" / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = {"name": "bundled", "parameters": {"providers": {"string_value": "CPUExecutionProvider"}, "tokens": {"string_value": "50"}}}
    made = module.TritonPythonModel()
    made.initialize({
        "model_config": json.dumps(config), "model_repository": str(repository / "bundled"), "model_version": "1", "model_name": "bundled",
        "model_instance_kind": "CPU", "model_instance_device_id": "0",
    })  # fmt: skip
    return made


def texts(*values):
    return np.array(values, np.object_)


def asked(model, leaves=None, **arrays):
    """The responses to a request."""
    request = pb_utils.Request(leaves, **arrays)
    assert model.execute([request]) is None
    assert request.sender.complete
    return request.sender.responses


def read(response):
    assert not response.has_error(), response.error().message()
    said = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    return said["text_output"][0].decode(), said["tokens"].tolist(), said["finish_reason"][0].decode()


def test_tritons_own_schema_takes_the_config(repository):
    """Of the package tritonclient, by path: the package itself wants gRPC, too."""
    found = importlib.util.find_spec("tritonclient")
    if found is None:
        pytest.skip("tritonclient is not installed: pip install --no-deps tritonclient")
    from google.protobuf import text_format

    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    config = text_format.Parse((repository / "bundled" / "config.pbtxt").read_text(encoding="utf-8"), schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("bundled", "python", 0)
    assert config.model_transaction_policy.decoupled
    assert [group.kind for group in config.instance_group] == [schema.ModelInstanceGroup.KIND_CPU]
    assert config.parameters["providers"].string_value == "CPUExecutionProvider"
    assert [x.name for x in config.input if not x.optional] == ["text_input"]
    on_gpu = deploy.CONFIG.format(name='"x"', device="kind: KIND_GPU gpus: [ 0 ]", providers='"CUDAExecutionProvider"')
    [group] = text_format.Parse(on_gpu, schema.ModelConfig()).instance_group
    assert (group.kind, list(group.gpus)) == (schema.ModelInstanceGroup.KIND_GPU, [0])


def test_the_repository_holds_the_artifact_whole(repository):
    assert sorted(p.name for p in repository.iterdir()) == ["bundled"]
    home = repository / "bundled"
    assert sorted(p.relative_to(home).as_posix() for p in home.glob("*")) == ["1", "config.pbtxt"]
    assert sorted(p.name for p in (home / "1").iterdir()) == ["artifact", "model.py"]
    assert verify(home / "1" / "artifact").exit_code == 0


def test_triton_answers_as_the_artifact_does(model, answer):
    [response] = asked(model, text_input=texts(QUESTION.encode()), image=texts(CODED))
    assert read(response) == (answer[1], answer[0], "stop")


def test_triton_streams_the_same_answer_piece_by_piece(model, answer):
    pieces = [read(r) for r in asked(model, text_input=texts(b"describe the picture ."), image=texts(CODED), stream=np.array([True]))]
    [whole] = [read(r) for r in asked(model, text_input=texts(b"describe the picture ."), image=texts(CODED))]
    assert len(pieces) > 2
    assert ("".join(text for text, _, _ in pieces), [t for _, tokens, _ in pieces for t in tokens], pieces[-1][2]) == whole
    assert {finish for _, _, finish in pieces[:-1]} == {""}


def test_triton_takes_sampling_parameters(model):
    def short(**given):
        parameters = texts(json.dumps({"max_tokens": 3, **given}).encode())
        [response] = asked(model, text_input=texts(b"describe the picture ."), image=texts(CODED), sampling_parameters=parameters)
        return read(response)

    text, tokens, finish = short(temperature=0)
    assert (len(tokens), finish) == (3, "length")
    assert short(temperature=1.5, seed=7) == short(temperature=1.5, seed=7)
    stopped = short(temperature=0, stop=text.split()[1])
    assert (stopped[0], stopped[2]) == (text.split()[0], "stop")


def test_triton_stops_for_a_client_that_left(model):
    request = {"text_input": texts(b"describe the picture ."), "image": texts(CODED), "stream": np.array([True])}
    assert len(asked(model, leaves=1, **request)) == 1


@pytest.mark.parametrize(("wrong", "said"), [
    ({"text_input": texts()}, "text_input must hold one text"),
    ({"sampling_parameters": texts(b"[1]")}, "must be a JSON object"),
    ({"sampling_parameters": texts(b'{"messages": []}')}, "must be a JSON object"),
    ({"sampling_parameters": texts(b'{"temperatur": 1}')}, "temperatur: this server knows no such field"),
    ({"sampling_parameters": texts(b'{"max_tokens": 51}')}, "at most 50 are given"),  # the parameter `tokens` of the fixture
    ({"image": texts(b"no base64!")}, "image[0] must be the base64 of a picture's file"),
    ({"image": texts(base64.b64encode(b"no picture"))}, "image[0]: not a picture"),
    ({"image": texts(*[CODED] * 9)}, "at most 8"),
    ({"text_input": texts(b"word " * 60_000)}, "characters"),
])  # fmt: skip
def test_triton_is_told_what_is_wrong_with_a_request(model, wrong, said):
    [response] = asked(model, **({"text_input": texts(QUESTION.encode()), "image": texts(CODED)} | wrong))
    assert response.error().code() == pb_utils.TritonError.INVALID_ARG
    assert said in response.error().message()


def test_triton_hears_of_defects_without_their_details(model, monkeypatch):
    def fail(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(model.engine, "answer", fail)
    [response] = asked(model, text_input=texts(QUESTION.encode()), image=texts(CODED))
    assert response.error().code() == pb_utils.TritonError.INTERNAL
    assert "secret" not in response.error().message()


def test_what_triton_loads_needs_no_torch(repository, answer):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.modules["torch"] = None
sys.path.insert(0, {str(repository / "bundled" / "1")!r})
import json, model
made = model.TritonPythonModel()
config = json.dumps({{"parameters": {{"providers": {{"string_value": "CPUExecutionProvider"}}}}}})
made.initialize({{"model_config": config, "model_repository": {str(repository / "bundled")!r}, "model_version": "1", "model_name": "m"}})
import base64, numpy as np, triton_python_backend_utils as pb_utils
coded = base64.b64encode(open({str(PICTURE)!r}, "rb").read())
request = pb_utils.Request(text_input=np.array([{QUESTION.encode()!r}], np.object_), image=np.array([coded], np.object_))
made.execute([request])
print(request.sender.responses[0].output_tensors()[0].as_numpy()[0].decode())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == answer[1]


# --- KServe -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(artifact, tmp_path_factory):
    """The YAML file, written by the command."""
    folder = tmp_path_factory.mktemp("kserve")
    where = ("--image", "example.org/lightvlm:1", "--storage-uri", "pvc://models/bundled")
    call = [*COMMAND, "package", artifact, "--for", "kserve", "-o", folder, *where]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(folder / "bundled.yaml"), "")
    return yaml.safe_load((folder / "bundled.yaml").read_text(encoding="utf-8"))


def test_kserves_own_classes_take_every_field(service):
    kserve = pytest.importorskip("kserve", reason="kserve is not installed: it wants an older protobuf, so a venv of its own")
    from kubernetes.client import ApiClient, V1Container

    assert (service["apiVersion"], service["kind"]) == (kserve.constants.KSERVE_V1BETA1, kserve.constants.KSERVE_KIND_INFERENCESERVICE)
    assert set(service) <= set(kserve.V1beta1InferenceService.attribute_map.values())
    assert set(service["spec"]) <= set(kserve.V1beta1InferenceServiceSpec.attribute_map.values())
    assert set(service["spec"]["predictor"]) <= set(kserve.V1beta1PredictorSpec.attribute_map.values())
    assert kserve.V1beta1PredictorSpec.openapi_types["containers"] == "list[V1Container]"
    [container] = service["spec"]["predictor"]["containers"]
    made = V1Container.from_dict(container)  # checks types
    assert ApiClient().sanitize_for_serialization(made) == container  # a field that it does not know would be missing


def test_kserves_command_serves_the_artifact(service, artifact, answer):
    [container] = service["spec"]["predictor"]["containers"]
    assert container["env"] == [{"name": "STORAGE_URI", "value": "pvc://models/bundled"}]
    words = [*container["command"], *container["args"]]
    assert words[:3] == ["lightvlm", "serve", "/mnt/models"]
    assert int(words[words.index("--port") + 1]) == container["ports"][0]["containerPort"] == container["readinessProbe"]["httpGet"]["port"]
    words[2], words[words.index("--port") + 1], words[words.index("--host") + 1] = str(artifact), "0", "127.0.0.1"
    with subprocess.Popen([*COMMAND, *words[1:]], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}) as server:
        try:
            url = server.stdout.readline().split()[-1].removesuffix("/v1")
            assert until(lambda: ask(url, None, container["readinessProbe"]["httpGet"]["path"])[0] == 200)
            status, _, body = ask(url, picture(f"data:image/png;base64,{CODED.decode()}", QUESTION, "bundled", temperature=0))
        finally:
            server.terminate()
    assert (status, body["choices"][0]["message"]["content"]) == (200, answer[1])


# --- both ---------------------------------------------------------------------------------------------------


def test_a_gpu_is_asked_for_where_graphs_are_for_one(artifact, tmp_path):
    path = deploy.kserve(artifact, tmp_path, image="i", storage_uri="s3://b/a", providers=["cuda"])
    [container] = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["predictor"]["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert container["args"][-2:] == ["--provider", "cuda"]
    model = deploy.triton(artifact, tmp_path, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    config = (model / "config.pbtxt").read_text(encoding="utf-8")
    assert "kind: KIND_GPU gpus: [ 0 ]" in config
    assert '"CUDAExecutionProvider,CPUExecutionProvider"' in config


def test_refuses_what_cannot_be_served(artifact, tmp_path):
    cpu = {"providers": ["CPUExecutionProvider"]}
    deploy.triton(artifact, tmp_path, name="there", **cpu)
    with pytest.raises(InputError, match="is there already"):
        deploy.triton(artifact, tmp_path, name="there", **cpu)
    with pytest.raises(InputError, match="letters, digits"):
        deploy.triton(artifact, tmp_path, name="../up", **cpu)
    with pytest.raises(InputError, match="small letters"):
        deploy.kserve(artifact, tmp_path, name="Up_1", image="i", storage_uri="s", **cpu)
    changed = shutil.copytree(artifact, tmp_path / "changed")
    (changed / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        deploy.triton(changed, tmp_path / "models", **cpu)
    assert not list((tmp_path / "models").glob("*"))
    manifest = json.loads((changed / "lightvlm.json").read_text(encoding="utf-8"))
    for name in deploy.PROCESSOR:
        manifest["files"].pop(name, None)
    (changed / "lightvlm.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="without a processor"):
        deploy.triton(changed, tmp_path / "models", **cpu)


@pytest.mark.parametrize(("words", "said"), [
    (("--for", "torchserve"), "no server named 'torchserve'"),
    (("--for", "kserve", "--image", "i"), "kserve needs --image"),
    (("--for", "triton", "--image", "i"), "--image and --storage-uri are for kserve"),
])  # fmt: skip
def test_the_command_says_what_is_missing(artifact, tmp_path, words, said):
    done = subprocess.run([*COMMAND, "package", artifact, *words, "-o", tmp_path / "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "x").exists()
