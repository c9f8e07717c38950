"""What is no whole artifact of ours is refused, and `lightvlm verify` says why with its exit code."""

import contextlib
import json
import os
import shutil

import numpy as np
import onnx
import pytest
import torch
from artifacts import BOUNDED, bounded_model, contents, manifest, reseal, rewrite
from hypothesis import given
from hypothesis import strategies as st

import lightvlm_fx as lightvlm
from lightvlm_fx.artifact.manifest import read
from lightvlm_fx.errors import ArtifactError, InputError


@pytest.fixture
def verify(run):
    """`lightvlm verify` in this process; returns exit code, output, errors."""
    return lambda *words: run("verify", *map(str, words))


# --- a folder that is not what was exported ---------------------------------------------------------------


def flip(file, at=-1):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def cut_off(file):
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 4096)


CHANGED = {
    "a changed byte of a graph": (lambda f: flip(f / "decode.onnx"), "decode.onnx has another SHA-256 than the manifest says"),
    "a changed weight": (lambda f: flip(f / "model.onnx.data", 5000), "model.onnx.data has another SHA-256"),
    "a changed sample": (lambda f: flip(f / "samples" / "0.sequences.npy"), "samples/0.sequences.npy has another SHA-256"),
    "a changed config": (lambda f: flip(f / "generation_config.json", 3), "generation_config.json has another SHA-256"),
    "truncated weights": (lambda f: cut_off(f / "model.onnx.data"), r"model.onnx.data has \d+ bytes, the manifest says \d+"),
    "a missing graph": (lambda f: (f / "vision.onnx").unlink(), "vision.onnx is missing"),
    "missing weights": (lambda f: (f / "model.onnx.data").unlink(), "model.onnx.data is missing"),
    "a folder for a file": (lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()), "config.json is missing"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_refuses_changed_files(broken, verify, name):
    change, message = CHANGED[name]
    change(broken)
    with pytest.raises(ArtifactError, match=f"is not what was exported:\n  {message}"):
        lightvlm.load(broken)
    code, text, _ = verify(broken)
    assert code == 1
    assert "files    FAILED" in text
    assert "skipped: lint and parity" in text


def test_names_every_changed_file(broken):
    flip(broken / "decode.onnx")
    (broken / "embed.onnx").unlink()
    with pytest.raises(ArtifactError) as error:
        lightvlm.load(broken)
    assert "decode.onnx" in str(error.value)
    assert "embed.onnx is missing" in str(error.value)


def test_loads_changed_files_where_told_to(broken):
    flip(broken / "config.json")
    assert lightvlm.load(broken, verify=False).manifest == manifest(broken)


# --- a manifest that is not to be trusted -----------------------------------------------------------------


def set_stage(path):
    return lambda m: m["buckets"][0]["stages"]["decode"].update(file=path)


def add_file(path):
    return lambda m: m["files"].update({path: {"sha256": "0" * 64, "bytes": 0}})


MANIFESTS = {
    "a newer schema": (lambda m: m.update(schema_version=4), "schema version 4, this lightvlm_fx reads up to 3; install a newer release"),
    "an older schema": (lambda m: m.update(schema_version=1), "schema version 1, this lightvlm_fx reads 2 to 3; export again, or"),
    "no number for a schema": (lambda m: m.update(schema_version="1"), "schema version 1"),
    "no schema": (lambda m: m.pop("schema_version"), "not readable as a manifest"),
    "no buckets": (lambda m: m.pop("buckets"), "lacks buckets"),
    "a file beside the folder": (add_file("../x"), r"names '\.\./x', which leads out of the folder; the artifact is not to be trusted"),
    "an absolute file": (add_file("/etc/hostname"), "names '/etc/hostname', which leads out of the folder"),
    "a stage beside the folder": (set_stage("../broken/../x"), "names '../broken/../x', which leads out of the folder"),
    "an absolute stage": (set_stage("/etc/hostname"), "names '/etc/hostname', which leads out of the folder"),
    "a stage without a hash": (lambda m: m["files"].pop("decode.onnx"), "names decode.onnx without a hash"),
    "a sample without a hash": (lambda m: m["files"].pop("samples/0.logits.npy"), "names samples/0.logits.npy without a hash"),
    "a table without a hash": (lambda m: m["files"].pop("tables/0.kept.npy"), "names tables/0.kept.npy without a hash"),
    "parts that do not divide": (lambda m: m["buckets"][0]["lengths"].update(parts=[1, 2]), "lengths.parts and prompt_tokens do not fit"),
    "torch-export": (lambda m: m.update(target="torch-export"), "was exported for torch-export; open its stages with torch.export.load"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_refuses_manifests(broken, verify, name):
    change, message = MANIFESTS[name]
    rewrite(broken, change)
    with pytest.raises(ArtifactError, match=message):
        lightvlm.load(broken)
    if name != "torch-export":  # which verify checks as far as it can
        code, _, errors = verify(broken)
        assert code == 2
        assert "ArtifactError" in errors or message.split(",")[0].replace("\\", "") in errors


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"{}", b'{"schema_version": null}'])
def test_refuses_garbage(tmp_path, verify, text):
    (tmp_path / "lightvlm.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=r"lightvlm\.json"):
        lightvlm.load(tmp_path)
    assert verify(tmp_path)[0] == 2


@pytest.mark.parametrize("make", [lambda f: None, lambda f: f.mkdir(), lambda f: f.write_text("x")], ids=["nothing", "empty", "a file"])
def test_refuses_a_folder_that_is_none(tmp_path, verify, make):
    make(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"is no artifact: it holds no lightvlm\.json; make one with `lightvlm export`"):
        lightvlm.load(tmp_path / "none")
    code, text, errors = verify(tmp_path / "none", "--json")
    assert code == 2
    assert not text
    assert "is no artifact" in errors


@pytest.mark.parametrize("name", ["model.onnx.data", "decode.onnx", "samples"])
def test_refuses_links_that_lead_out(broken, tmp_path, name):
    (broken / name).rename(tmp_path / "elsewhere")
    (broken / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="leads out of the folder"):
        lightvlm.load(broken)


def test_takes_links_that_stay_inside_and_a_link_to_the_folder(broken, tmp_path):
    (broken / "decode.onnx").rename(broken / "real.onnx")
    (broken / "decode.onnx").symlink_to("real.onnx")
    (tmp_path / "link").symlink_to(broken)
    assert lightvlm.load(tmp_path / "link").manifest["buckets"]


def test_refuses_weights_without_a_hash(broken):
    rewrite(broken, lambda m: m["files"].pop("model.onnx.data"))
    flip(broken / "model.onnx.data", 5000)
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data"):
        lightvlm.load(broken)


JUNK = st.sampled_from([None, 0, 1.5, "x", "\0", [], ["x"], {}, {"x": 1}, True])
PATHS = [("files",), ("buckets",), ("files", "decode.onnx"), ("files", "decode.onnx", "bytes"), ("files", "decode.onnx", "sha256"),
         ("buckets", 0), ("buckets", 0, "stages"), ("buckets", 0, "samples"), ("buckets", 0, "stages", "decode"),
         ("buckets", 0, "stages", "decode", "file"), ("buckets", 0, "samples", "logits"), ("target",)]  # fmt: skip


@given(st.sampled_from(PATHS), JUNK)
def test_refuses_a_manifest_of_other_shapes(bounded, tmp_path_factory, path, junk):
    """Whatever stands in a place, the manifest is taken or refused with an ArtifactError."""
    home = tmp_path_factory.mktemp("junk")
    found = manifest(bounded)
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = junk
    shutil.copytree(bounded, home, copy_function=os.link, dirs_exist_ok=True)
    (home / "lightvlm.json").unlink()
    (home / "lightvlm.json").write_text(json.dumps(found))
    with contextlib.suppress(ArtifactError):
        lightvlm.load(home)


# --- verify: a good one, and every code -------------------------------------------------------------------


def test_verify_of_a_good_one(bounded, verify):
    before = contents(bounded)
    code, text, _ = verify(bounded)
    assert code == 0
    assert [line.split()[:2] for line in text.splitlines()[:3]] == [["files", "ok"], ["lint", "ok"], ["parity", "ok"]]
    assert "tokens equal" in text
    assert contents(bounded) == before


def test_verify_prints_json(bounded, broken, verify):
    code, text, _ = verify(bounded, "--json")
    found = json.loads(text)
    assert code == found["exit_code"] == 0
    assert found["ok"] is True
    assert found["parity"]["tokens_equal"] is True
    assert found["parity"]["logits"] <= 1e-4
    assert not found["files"] + found["lint"] + found["parity_wrong"]

    flip(broken / "decode.onnx")
    code, text, _ = verify(broken, "--json")
    found = json.loads(text)
    assert code == found["exit_code"] == 1
    assert found["ok"] is False
    assert found["parity"] is None
    assert len(found["files"]) == 1


def edit_graph(folder, change, stage="embed"):
    graph = onnx.load(str(folder / f"{stage}.onnx"), load_external_data=False)
    change(graph)
    onnx.save(graph, str(folder / f"{stage}.onnx"))
    reseal(folder)


def unused_weight(model):
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "spare"))


def other_operator(model):
    output = model.graph.output[0].name
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == output:
                node.output[i] = "before"
    model.graph.node.append(onnx.helper.make_node("Abs", ["before"], [output], name="spare"))


def control_flow(model):
    model.graph.node.append(onnx.helper.make_node("NonZero", [model.graph.input[0].name], ["where"], name="spare"))


def moving_shape(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows"


def newer_opset(model):
    model.opset_import[0].version = 99


def own_operator(model):
    model.opset_import.append(onnx.helper.make_opsetid("my.domain", 1))


LINT = {
    "weight spare is not used": unused_weight, "holds other operators than the manifest says of embed": other_operator,
    "node spare is a NonZero, which the target does not take": control_flow,
    "has a shape that is not known beforehand": moving_shape, "is stamped opset 99": newer_opset, "of the domain 'my.domain'": own_operator,
}  # fmt: skip


@pytest.mark.parametrize("message", LINT)
def test_verify_of_graphs_that_the_target_does_not_take(broken, message):
    """The verdict without parity, which a graph that cannot run would end."""
    from lightvlm_fx.artifact.lint import lint

    edit_graph(broken, LINT[message])
    wrong, skipped = lint(broken, read(broken), ["CPUExecutionProvider"])
    assert any(message in line for line in wrong), wrong
    assert all(line.startswith("embed.onnx: ") for line in wrong)
    assert not skipped


def whole_number(model):
    model.graph.node.append(onnx.helper.make_node("ArgMin", ["input_ids"], ["least"], name="spare"))


def computed_shape(model):
    model.graph.node.append(onnx.helper.make_node("Reshape", ["input_ids", "input_ids"], ["turned"], name="spare"))


CUDA = {"node spare: the CUDA provider has no ArgMin of INT64": whole_number,
        "node spare: input 1 of a Reshape is read on the CPU, and computed": computed_shape}  # fmt: skip


@pytest.mark.parametrize("message", CUDA)
def test_verify_tells_what_a_gpu_would_leave_to_the_cpu(broken, message):
    """Of an artifact for the CUDA provider, without a GPU."""
    rewrite(broken, lambda m: m.update(provider="cuda"))
    assert lightvlm.verify(broken).exit_code == 0
    edit_graph(broken, CUDA[message])
    found = lightvlm.verify(broken)
    assert f"embed.onnx: {message}" in found.lint
    assert found.exit_code == 3


def test_a_provider_that_is_not_there_is_not_replaced(bounded, verify):
    named = "this onnxruntime has no CUDAExecutionProvider, only "
    with pytest.raises(InputError, match=named):
        lightvlm.load(bounded, providers=["CUDAExecutionProvider"])
    code, _, text = verify(bounded, "--provider", "cuda")
    assert code == 2
    assert named in text


@pytest.mark.parametrize("change", [unused_weight, control_flow], ids=["unused weight", "NonZero"])
def test_verify_exits_with_3_for_lint(broken, verify, change):
    edit_graph(broken, change)
    code, text, _ = verify(broken)
    assert code == 3
    assert "files    ok" in text
    assert "lint     FAILED" in text


@pytest.mark.parametrize("content", [b"no graph", b"\x08\xff", bytes(99)], ids=["text", "cut", "zeros"])
def test_verify_exits_with_3_where_a_graph_does_not_parse(broken, verify, content):
    """Its hash is the manifest's, so the files are those that were exported."""
    (broken / "decode.onnx").write_bytes(content)
    reseal(broken)
    code, text, _ = verify(broken)
    assert code == 3
    assert "files    ok" in text
    assert "decode.onnx: " in text


def test_one_provider_is_a_list_of_one(bounded):
    with pytest.raises(InputError, match=r"providers is a list of names: write providers=\['CPUExecutionProvider'\]"):
        lightvlm.load(bounded, providers="CPUExecutionProvider")


def test_verify_exits_with_3_where_the_graph_does_not_run(broken, verify):
    edit_graph(broken, newer_opset)
    assert verify(broken)[0] == 3


def other_answer(folder):
    path = folder / "samples" / "0.sequences.npy"
    tokens = np.load(path)
    tokens[0, -1] += 1
    np.save(path, tokens)


def other_logits(folder):
    path = folder / "samples" / "0.logits.npy"
    logits = np.load(path)
    logits[0, 0] += 1e-3 * np.abs(logits).max()
    np.save(path, logits)



PARITY = {"the greedy answer differs": other_answer, "logits differ from those recorded at export by": other_logits}


@pytest.mark.parametrize("message", PARITY)
def test_verify_exits_with_4_for_parity(broken, verify, message):
    PARITY[message](broken)
    reseal(broken)
    code, text, _ = verify(broken)
    assert code == 4
    assert "files    ok" in text
    assert "lint     ok" in text
    assert "parity   FAILED" in text
    assert message in text


def nothing(folder, name):
    path = folder / "samples" / f"0.{name}.npy"
    array = np.load(path)
    array[0, 0] = np.nan
    np.save(path, array)
    reseal(folder)


def test_recorded_logits_that_are_no_numbers_are_wrong(broken, verify):
    """`max(0.0, nan)` is 0.0."""
    nothing(broken, "logits")
    code, text, _ = verify(broken, "--json")
    assert code == 4
    assert json.loads(text, parse_constant=pytest.fail)["parity"]["logits"] is None


def weights(folder, change, stages=("embed", "prefill", "decode")):
    """Change every matrix of floats that these graphs read from the weight file."""
    data = bytearray((folder / "model.onnx.data").read_bytes())
    for stage in stages:
        for weight in onnx.load(str(folder / f"{stage}.onnx"), load_external_data=False).graph.initializer:
            place = {e.key: e.value for e in weight.external_data}
            if place and weight.data_type == onnx.TensorProto.FLOAT:
                start, end = int(place["offset"]), int(place["offset"]) + int(place["length"])
                data[start:end] = change(np.frombuffer(data[start:end], np.float32)).astype(np.float32).tobytes()
    (folder / "model.onnx.data").write_bytes(data)
    reseal(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_wrong(broken, dtype, value, tiny):
    """Of whatever precision, and whatever the manifest says of parity. Such an artifact does not answer either."""
    weights(broken, lambda x: np.full_like(x, value))
    rewrite(broken, lambda m: m.update(dtype=dtype, parity={"logits": 1e-4, "tokens_equal": True}))
    verdict = lightvlm.verify(broken)
    assert verdict.exit_code == 4
    assert verdict.parity_wrong
    with pytest.raises(ArtifactError, match="the logits of token 0 are NaN or infinite"):
        lightvlm.load(broken).generate(**tiny.inputs(text=(9,), images=(1,)), max_new_tokens=2)


@pytest.mark.parametrize("logits", [1e-3, 1.0, 1e9])
def test_a_manifest_does_not_loosen_the_bound_at_will(broken, logits):
    rewrite(broken, lambda m: m.update(parity={"logits": logits, "tokens_equal": True}))
    with pytest.raises(ArtifactError, match=r"parity\.logits: expected at most 0\.0001 of float32"):
        lightvlm.verify(broken)


def test_the_bound_has_an_end(bounded):
    from lightvlm_fx.artifact.verify import LOOSEST, TOLERANCE, bound_of

    for dtype in TOLERANCE:
        for logits, want in ((0.0, TOLERANCE[dtype]), (LOOSEST[dtype], LOOSEST[dtype]), (1e9, LOOSEST[dtype])):
            assert bound_of({"dtype": dtype, "parity": {"logits": logits}}) == want
        assert bound_of({"dtype": dtype, "parity": None}) == TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_other_tokens_are_wrong_in_any_precision(broken, dtype):
    """One that is nearly as likely may be chosen; here it is the least likely."""
    rewrite(broken, lambda m: m.update(dtype=dtype))
    path = broken / "samples" / "0.sequences.npy"
    tokens = np.load(path)
    tokens[0, -1] = (tokens[0, -1] + 60) % 120
    np.save(path, tokens)
    reseal(broken)
    verdict = lightvlm.verify(broken)
    assert verdict.exit_code == 4
    assert "of the largest logit from being the likeliest" in verdict.parity_wrong[0]


def test_verify_sees_other_weights(broken):
    """Numbers only: the weight file also holds indices, which stay."""
    places = []
    for stage in ("embed", "prefill", "decode"):
        graph = onnx.load(str(broken / f"{stage}.onnx"), load_external_data=False).graph
        for weight in graph.initializer:
            entry = {e.key: e.value for e in weight.external_data}
            if entry and weight.data_type == onnx.TensorProto.FLOAT:
                places.append((int(entry["offset"]), int(entry["length"])))
    data = bytearray((broken / "model.onnx.data").read_bytes())
    start, length = max(places, key=lambda p: p[1])
    data[start : start + length] = (np.frombuffer(data[start : start + length], np.float32) * 1.5).astype(np.float32).tobytes()
    (broken / "model.onnx.data").write_bytes(data)
    reseal(broken)
    assert lightvlm.verify(broken).exit_code == 4


def test_verify_compares_with_the_source(bounded, tiny, broken):
    fast = lightvlm.compile(tiny.model, BOUNDED, backend="eager")
    verdict = lightvlm.verify(bounded, model=fast)
    assert verdict.exit_code == 0
    assert verdict.source["logits"] <= 1e-4
    assert "source   ok       logits within" in str(verdict)

    flip(broken / "decode.onnx")
    assert "source: the model was not asked, as the checks ended before" in lightvlm.verify(broken, model=fast).skipped


def test_verify_sees_that_the_source_was_trained_on(bounded):
    trained = bounded_model().model
    with torch.no_grad():
        trained.get_decoder().layers[1].mlp.down_proj.weight.mul_(1.5)
    verdict = lightvlm.verify(bounded, model=lightvlm.compile(trained, BOUNDED, backend="eager"))
    assert (verdict.exit_code, verdict.parity_wrong) == (4, [])
    assert "parity   ok" in str(verdict)
    assert "source   FAILED" in str(verdict)
    assert "logits differ from the model's by" in verdict.source_wrong[0]


def test_verify_refuses_what_cannot_be_the_source(bounded, tiny):
    with pytest.raises(InputError, match=r"the artifact's schedule is \w+, the compiled model's \w+"):
        lightvlm.verify(bounded, model=lightvlm.compile(tiny.model, "h2o", backend="eager"))
    with pytest.raises(InputError, match="made from a LlavaForConditionalGeneration, got a Linear"):
        lightvlm.verify(bounded, model=torch.nn.Linear(2, 2))
    half = lightvlm.compile(bounded_model().model.half(), BOUNDED, backend="eager")
    with pytest.raises(InputError, match=r"the artifact computes in float32, the model in torch\.float16: load it with dtype='float32'"):
        lightvlm.verify(bounded, model=half)


def test_verify_answers_what_it_is_asked(verify, bounded):
    assert verify(bounded, "--provider", "cpu", "--json")[0] == 0
