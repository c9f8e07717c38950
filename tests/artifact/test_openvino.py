"""Tier 5: target openvino. The stages of other targets' graphs on OpenVINO, where it is installed."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from artifacts import CUTS, ROOM, arrays, check_same, copied, interpreter_with, once, reseal, rewrite, split
from onnx import TensorProto, helper
from test_torch_free import ABSENT, SCRIPT

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.artifact import openvino as engine
from lightvlm_fx.artifact.load import engine_of
from lightvlm_fx.artifact.openvino_graph import LONGEST
from lightvlm_fx.errors import ArtifactError, InputError
from lightvlm_fx.kv import Kv
from lightvlm_fx.schedule import Schedule

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
SCHEDULES = {
    "none": Schedule.preset("none"),
    "cuts": Schedule.preset("lightvlm", keep=0.35, layers=(1,)),
    "h2o": Schedule.preset("h2o", capacity=20),
    "periodic": Schedule(kv=Kv(capacity=20, sinks=2, recent=4, when="periodic", every=6)),
}
NEW = 16


def write(folder, family, schedule, **options):
    tiny = zoo.build(family, layers=2)
    example = tiny.inputs(text=(9, 6), images=(1, 1))
    lightvlm.export(tiny.model, schedule, folder, target="openvino", inputs=example, prompt_tokens=60, new_tokens=NEW, **options)


@pytest.fixture(scope="module")
def cuts(shelf):
    """Tiny LLaVA, two rows, cuts, for OpenVINO. Shared: leave it as it is."""
    return once(shelf, "openvino-llava-cuts", lambda folder: write(folder, "llava", SCHEDULES["cuts"]))


@pytest.fixture(scope="module")
def answers():
    """The compiled models, captured once for all schedules."""
    made = {}

    def of(family, schedule):
        if family not in made:
            tiny = zoo.build(family, layers=2)
            made[family] = tiny, lightvlm.compile(tiny.model, "none", backend="eager")
        tiny, fast = made[family]
        return tiny, fast.lightvlm.with_schedule(schedule)

    return of


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_answers_as_the_compiled_model(family, name, shelf, answers):
    made = once(shelf, f"openvino-{family}-{name}", lambda folder: write(folder, family, SCHEDULES[name]))
    verdict = lightvlm.verify(made)
    assert (verdict.exit_code, verdict.skipped) == (0, []), verdict
    tiny, fast = answers(family, SCHEDULES[name])
    vlm = lightvlm.load(made)
    assert vlm.engine.title == "OpenVINO"
    for text, images, seed in (((9, 6), (1, 1), 3), ((14,), (1,), 4), ((20,), (0,), 5)):
        check_same(fast, vlm, tiny.inputs(text=text, images=images, seed=seed), NEW)


def test_the_answer_is_other_where_equal_values_lose_their_order(cuts, monkeypatch):
    """What OpenVINO's frontend makes of the graphs as they are: cuts choose other tokens, and verify says so."""
    assert lightvlm.verify(cuts).exit_code == 0
    monkeypatch.setattr(engine, "keep_order", lambda runtime, model: 0)
    verdict = lightvlm.verify(cuts)
    assert verdict.exit_code == 4
    assert verdict.parity["logits"] > 0.01


def opened(folder, nodes, inputs, outputs, **constants):
    """A graph of `nodes`, as OpenVINO reads it. Inputs and outputs: element type and shape by name; constants: integers by name."""
    values = [[helper.make_tensor_value_info(name, *of) for name, of in side.items()] for side in (inputs, outputs)]
    held = [helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers) for name, numbers in constants.items()]
    graph = helper.make_graph(nodes, "g", *values, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "g.onnx")
    found = engine_of({"target": "openvino", "dtype": "float32"}, ["CPU"])
    return found, found.core.read_model(folder / "g.onnx")


def top(folder, kind, shape, axis=-1, largest=1, ordered=1, count=90):
    """A graph of one TopK, as OpenVINO reads it."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    node = helper.make_node("TopK", ["x", "k"], ["v", "y"], "n", axis=axis, largest=largest, sorted=ordered)
    return opened(folder, [node], {"x": (element, shape)}, {"v": (element, None), "y": (TensorProto.INT64, None)}, k=[count])


def kinds(model):
    return {op.get_type_name() for op in model.get_ops()}


@pytest.mark.parametrize("shape", [[2, 200], ["b", "n"], [2, "n", 3]], ids=["static", "symbolic", "in the middle"])
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("ordered", [0, 1])
@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_of_equal_values_the_first_stay(largest, ordered, kind, shape, tmp_path):
    """As ONNX says of TopK, and as OpenVINO does not say of what its frontend makes of one."""
    found, model = top(tmp_path, kind, shape, 1 if len(shape) == 3 else -1, largest, ordered)
    assert engine.keep_order(found.runtime, model) == 1
    assert engine.keep_order(found.runtime, model) == 0
    x = np.random.default_rng(0).integers(-1, 2, [2, 200, *shape[2:]]).astype(kind)
    values, places = found.core.compile_model(model, "CPU", found.properties)(x).values()
    wanted = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :90]
    assert (places if ordered else np.sort(places, 1)).tolist() == (wanted if ordered else np.sort(wanted, 1)).tolist()
    np.testing.assert_array_equal(values, np.take_along_axis(x, places.astype(np.int64), 1))


def test_sorts_that_are_too_long_for_two_keys_are_the_runtimes_own(tmp_path):
    found, model = top(tmp_path, np.float32, [1, LONGEST + 1])
    assert engine.keep_order(found.runtime, model) == 1
    assert [op.get_attributes()["stable"] for op in model.get_ops() if op.get_type_name() == "TopK"] == [True]


@pytest.mark.parametrize(("shape", "axis"), [([2, 200], -1), (["b", "n"], 1), ([2, "n", 3], 1)], ids=["static", "symbolic", "inside"])
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_one_value_is_found_without_a_sort(largest, kind, shape, axis, tmp_path):
    found, model = top(tmp_path, kind, shape, axis, largest, count=1)
    assert (engine.take_largest(found.runtime, model), "TopK" in kinds(model)) == (1, False)
    x = np.random.default_rng(0).integers(-3, 4, [2, 200, *shape[2:]]).astype(kind)
    values, places = found.core.compile_model(model, "CPU", found.properties)(x).values()
    wanted = np.expand_dims((x.argmax if largest else x.argmin)(1), 1)
    np.testing.assert_array_equal(places, wanted)
    np.testing.assert_array_equal(values, np.take_along_axis(x, wanted, 1))


def test_a_place_is_found_where_values_are_none(tmp_path):
    """What reads the place must not read beside the row."""
    found, model = top(tmp_path, np.float32, [2, "n"], count=1)
    engine.take_largest(found.runtime, model)
    x = np.full([2, 5], np.nan, np.float32)
    assert found.core.compile_model(model, "CPU", found.properties)(x)[1].tolist() == [[4], [4]]


@pytest.mark.parametrize(("index", "shape", "done"), [([5, 1], [5, 3], 1), (["n", 1], ["n", 3], 1), ([1, 1], [5, 3], 1),
                                                      ([5, 3], [5, 3], 0), (["n", "m"], ["n", 3], 0)])  # fmt: skip
def test_rows_are_added_whole(index, shape, done, tmp_path):
    """Where all numbers of a row go to one place, as an `index_add` is exported."""
    nodes = [helper.make_node("Expand", ["at", "to"], ["each"]),
             helper.make_node("ScatterElements", ["x", "each", "rows"], ["y"], axis=0, reduction="add")]  # fmt: skip
    given = {"x": (TensorProto.FLOAT, ["k", 3]), "at": (TensorProto.INT64, index), "rows": (TensorProto.FLOAT, shape)}
    found, model = opened(tmp_path, nodes, given, {"y": (TensorProto.FLOAT, None)}, to=[5, 3])
    assert engine.add_rows(found.runtime, model) == done
    assert ("ScatterElementsUpdate" in kinds(model)) == (not done)
    random = np.random.default_rng(0)
    x, rows = (random.standard_normal(size).astype(np.float32) for size in ([4, 3], [5, 3]))
    at = random.integers(-4, 4, [5 if n == "n" else 1 if n == "m" else n for n in index])
    wanted = x.copy()
    np.add.at(wanted, (np.broadcast_to(at, rows.shape), np.arange(3)), rows)
    y = found.core.compile_model(model, "CPU", found.properties)({"x": x, "at": at, "rows": rows})[0]
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)


def test_more_tokens_than_two_keys_can_sort_are_refused():
    nothing = SimpleNamespace(inputs=[], outputs=[])
    session = engine.OvSession(None, nothing, {"inputs": [], "outputs": []}, LONGEST, {})
    with pytest.raises(InputError, match=rf"at most {LONGEST} tokens at once, got inputs_embeds of \[1, {LONGEST + 1}, 2\]"):
        session.run({"inputs_embeds": np.zeros([1, LONGEST + 1, 2], np.float32)})


@pytest.mark.parametrize(("name", "handed"), [("none", 4), ("cuts", 4), ("h2o", 0)])
def test_steps_hand_out_entries_where_attention_alone_reads_the_buffers(name, handed, shelf):
    """OpenVINO would copy each buffer twice a step. Scores of a bounded cache read what was written."""
    made = once(shelf, f"openvino-llava-{name}", lambda folder: write(folder, "llava", SCHEDULES[name]))
    assert len(lightvlm.load(made).stages().sessions["decode"].entries) == handed


def test_steps_write_for_themselves_where_rows_may_have_slots_of_their_own(shelf):
    made = once(shelf, "openvino-llava-none", lambda folder: write(folder, "llava", SCHEDULES["none"]))
    found = lightvlm.load(made).engine
    model, ops = found.core.read_model(made / "decode.onnx"), found.runtime.opset13
    for op in [op for op in model.get_ops() if op.get_type_name() == "ScatterElementsUpdate"]:
        at = op.input(1)
        at.replace_source_output(ops.add(at.get_source_output(), ops.constant(0, np.int64)).output(0))
    assert engine.hand_out_entries(found.runtime, model) == {}


def test_a_layers_entries_are_chosen_before_the_next_layer_runs(shelf):
    """The attention that they are chosen by is held until then."""
    made = once(shelf, "openvino-llava-h2o", lambda folder: write(folder, "llava", SCHEDULES["h2o"]))
    ran = lightvlm.load(made).stages().sessions["prefill"].compiled.get_runtime_model().get_ops()
    said = [{name: op.get_rt_info()[name].value for name in ("layerType", "execOrder")} for op in ran]
    at = {kind: [int(of["execOrder"]) for of in said if of["layerType"] == kind] for kind in ("Softmax", "TopK")}
    first, second = sorted(at["Softmax"])
    assert any(first < place < second for place in at["TopK"])


def test_every_layer_computes_in_half_precision_where_it_is_asked_for(cuts):
    """OpenVINO would keep all layers before a cut in float32: they say at which angles those after it rotate."""
    vlm = lightvlm.load(cuts, session_options={"INFERENCE_PRECISION_HINT": "bf16"})
    if "BF16" not in vlm.engine.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    ran = vlm.stages().sessions["prefill"].compiled.get_runtime_model().get_ops()
    said = [{name: op.get_rt_info()[name].value for name in ("layerType", "runtimePrecision")} for op in ran]
    assert {of["runtimePrecision"] for of in said if of["layerType"] == "FullyConnected"} == {"bf16"}


@pytest.mark.parametrize("what", ["prefill.onnx", "model.onnx.data", "samples/0.logits.npy"])
def test_verify_names_a_forged_file(what, cuts, tmp_path):
    folder = copied(cuts, tmp_path / "forged")
    data = bytearray((folder / what).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / what).write_bytes(data)
    verdict = lightvlm.verify(folder)
    assert verdict.exit_code == 1
    assert verdict.files == [f"{what} has another SHA-256 than the manifest says"]
    with pytest.raises(ArtifactError, match=f"{what} has another SHA-256"):
        lightvlm.load(folder)


def test_weights_that_were_forged_with_their_hash_fail_parity(cuts, tmp_path):
    folder = copied(cuts, tmp_path / "forged")
    weights = np.fromfile(folder / "model.onnx.data", np.uint8)
    weights[3::4] ^= 0x80  # every sign
    weights.tofile(folder / "model.onnx.data")
    reseal(folder)
    assert lightvlm.verify(folder).exit_code == 4


@pytest.mark.parametrize("place", ["../model.onnx.data", "config.json", "/etc/hostname"])
def test_no_weight_is_read_from_another_place(place, cuts, tmp_path):
    folder = copied(cuts, tmp_path / "forged")
    (tmp_path / "model.onnx.data").write_bytes((cuts / "model.onnx.data").read_bytes())
    graph = onnx.load(str(folder / "embed.onnx"), load_external_data=False)
    for weight in graph.graph.initializer:
        for entry in weight.external_data:
            entry.value = place if entry.key == "location" else entry.value
    onnx.save(graph, folder / "embed.onnx")
    reseal(folder)
    assert lightvlm.verify(folder).exit_code == 3
    ids = np.full((1, 8), 10)
    with pytest.raises(ArtifactError, match=r"OpenVINO does not open embed\.onnx"):
        lightvlm.load(folder).generate(input_ids=ids, max_new_tokens=1)


def test_says_which_graph_is_none(cuts, tmp_path):
    folder = copied(cuts, tmp_path / "broken")
    (folder / "decode.onnx").write_bytes(b"no graph")
    reseal(folder)
    with pytest.raises(ArtifactError, match=r"OpenVINO does not open decode\.onnx: .*export again"):
        lightvlm.load(folder).generate(input_ids=np.full((1, 8), 10), max_new_tokens=1)


def test_a_folder_that_moves_on_changes_no_answer(cuts, tmp_path):
    """Sessions opened after the folder is gone read what was hashed."""
    folder = copied(cuts, tmp_path / "moved")
    ids = np.full((1, 12), 10)
    wanted = lightvlm.load(folder).generate(input_ids=ids, max_new_tokens=6)
    vlm = lightvlm.load(folder)
    folder.rename(tmp_path / "elsewhere")
    assert vlm.generate(input_ids=ids, max_new_tokens=6).tolist() == wanted.tolist()
    with (tmp_path / "elsewhere" / "model.onnx.data").open("r+b") as stream:
        stream.write(b"x")
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data was written to since the artifact was loaded; load it again"):
        vlm.generate(input_ids=ids, max_new_tokens=6)


def test_steps_write_into_the_buffers_they_read(shelf):
    """Nothing is copied: every buffer of the cache stays where the prompt put it, and changes there."""
    made = once(shelf, "openvino-llava-h2o", lambda folder: write(folder, "llava", SCHEDULES["h2o"]))
    tiny = zoo.build("llava", layers=2)
    run = lightvlm.load(made).stages(0).start(*split(tiny.inputs(text=(9, 9), images=(1, 1))), zoo.PAD)
    places = {name: tensor.data.ctypes.data for name, tensor in run.cache.items()}
    before = {name: tensor.data.copy() for name, tensor in run.cache.items()}
    assert len(set(places.values())) == len(places)
    for token in range(30, 30 + NEW):
        run.step(np.array([token, token]))
    for name, tensor in run.cache.items():
        assert tensor.data.ctypes.data == places[name]
        if name.endswith((".key", ".value", ".position")):
            assert not np.array_equal(tensor.data, before[name]), name


def test_a_step_beyond_the_room_is_refused(cuts):
    """OpenVINO does not look whether an index lies in a buffer: it would write over other memory."""
    run = lightvlm.load(cuts).stages().start(np.full((1, 12), 10), np.ones((1, 12), np.int64), {}, 0)
    for _ in range(NEW):
        run.step(np.array([10]))
    with pytest.raises(InputError, match=f"the caches have room for {NEW} new tokens; export with a larger new_tokens"):
        run.step(np.array([10]))


def test_threads_at_once_answer_as_one(cuts):
    tiny = zoo.build("llava", layers=2)
    vlm = lightvlm.load(cuts)
    asked = [arrays(tiny.inputs(text=(9 + seed % 3,), images=(1,), seed=seed)) for seed in range(12)]
    alone = [vlm.generate(**inputs, max_new_tokens=8).tolist() for inputs in asked]
    with ThreadPoolExecutor(4) as pool:
        assert [x.tolist() for x in pool.map(lambda inputs: vlm.generate(**inputs, max_new_tokens=8), asked)] == alone


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_integer_weights_answer_as_on_onnx_runtime(shelf, tmp_path, dtype):
    """But for its activations, which are rounded there."""
    made = once(shelf, f"openvino-{dtype}", lambda folder: write(folder, "llava", SCHEDULES["cuts"], dtype=dtype))
    assert lightvlm.verify(made).exit_code == 0
    other = copied(made, tmp_path / "other")
    rewrite(other, lambda found: found.update(target="onnxruntime"))
    ids = np.full((1, 12), 10)
    logits = [lightvlm.load(f).stages().start(ids, np.ones_like(ids), {}, 0).logits for f in (made, other)]
    assert np.abs(logits[0] - logits[1]).max() <= 0.1 * np.abs(logits[1]).max()


def test_says_what_to_do_instead_of_bfloat16(tmp_path):
    tiny = zoo.build("llava", layers=2)
    with pytest.raises(InputError, match="target 'openvino' has no bfloat16: export in float32 and load with session_options="):
        lightvlm.export(tiny.model, CUTS, tmp_path / "out", target="openvino", dtype="bfloat16", inputs=tiny.inputs(), new_tokens=ROOM)


def test_what_products_are_computed_in(cuts):
    """Not OpenVINO's default, which is bfloat16 where the CPU has it; a caller may ask for that."""
    asked = lightvlm.load(cuts, session_options={"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": "1"})
    for vlm, wanted, threads in ((lightvlm.load(cuts), "f32", None), (asked, "bf16", 1)):
        compiled = vlm.stages().sessions["prefill"].compiled
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() in (wanted, "f32")  # f32 also where the CPU has no bfloat16
        assert threads is None or compiled.get_property("INFERENCE_NUM_THREADS") == threads
    ids = np.full((1, 12), 10)
    first, second = (lightvlm.load(cuts).stages().start(ids, np.ones_like(ids), {}, 0).logits for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(("options", "said"), [
    ({"providers": ["CUDAExecutionProvider"]}, "OpenVINO has no device CUDAExecutionProvider here, only CPU"),
    ({"providers": "CPU"}, r"runs on one device: write providers=\['CPU'\], got 'CPU'"),
    ({"providers": []}, r"runs on one device: write providers=\['CPU'\], got \[\]"),
    ({"session_options": 3}, "session_options of an artifact of target openvino are OpenVINO's properties, a dict .* got a int"),
])  # fmt: skip
def test_says_what_it_cannot_be_given(options, said, cuts):
    with pytest.raises(InputError, match=said):
        lightvlm.load(cuts, **options)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """The interpreter of a new environment with NumPy and OpenVINO, of the versions that are installed here."""
    return interpreter_with(tmp_path_factory.mktemp("bare") / "venv", "numpy", "openvino")


def test_answers_without_torch(bare_python, cuts):
    env = {"PYTHONPATH": str(Path(lightvlm.__file__).parents[1]), "PYTHONWARNINGS": "error", "PATH": "/usr/bin:/bin"}
    script = SCRIPT.replace(repr(ABSENT), repr((*ABSENT, "onnxruntime")))
    done = subprocess.run([bare_python, "-c", script, str(cuts)], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["present"] == found["loaded"] == []
    assert found["answers"] == [np.load(cuts / "samples" / "0.sequences.npy").tolist()]
    assert found["verdict"]["exit_code"] == 0
    assert found["verdict"]["skipped"] == ["lint: the package onnx is not installed"]


def command(folder, *args):
    code = "from lightvlm_fx.cli.main import main; main()"
    env = os.environ | {"PYTHONPATH": str(Path(lightvlm.__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", code, *args, str(folder)], capture_output=True, text=True, check=False, env=env)


def test_commands(cuts):
    done = command(cuts, "verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert "parity   ok" in done.stdout
    done = command(cuts, "verify", "--provider", "GPU")
    assert done.returncode == 2
    assert "OpenVINO has no device GPU here, only CPU" in done.stderr
    assert "for openvino on" in command(cuts, "inspect").stdout
