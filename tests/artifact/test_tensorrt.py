"""Tier 5: target tensorrt. Its dialect, and where TensorRT for RTX is installed, which needs no GPU, its parser and builder."""

import re
import subprocess

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from artifacts import BOUNDED, check_same, copied, once, reseal, write_bounded
from onnx import TensorProto, helper, numpy_helper

import lightvlm_fx as lightvlm
from lightvlm_fx.artifact import parser
from lightvlm_fx.artifact.targets import TARGETS
from lightvlm_fx.errors import CaptureError
from lightvlm_fx.exporters.precision import in_standard_operators, quantise
from lightvlm_fx.exporters.sums import scatter_as_matmul
from lightvlm_fx.exporters.tensorrt import ToTensorRT

STAGES = ["decode.onnx", "embed.onnx", "prefill.onnx", "vision.onnx"]


def tensorrt():
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has no wheel here")


@pytest.fixture(scope="module")
def made(shelf):
    """Tiny LLaVA under cuts that merge and a cache that merges."""
    return once(shelf, "tensorrt", lambda folder: write_bounded(folder, target="tensorrt"))


def graph(nodes, inputs, outputs, weights=(), opset=20):
    values = [[helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in side] for side in (inputs, outputs)]
    held = [numpy_helper.from_array(array, name) for name, array in weights]
    made = helper.make_graph(nodes, "g", *values, held)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def ran(model, **inputs):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_verifies_and_answers_as_the_compiled_model(made, tiny):
    verdict = lightvlm.verify(made)
    assert verdict.exit_code == 0, verdict
    fast = lightvlm.compile(tiny.model, BOUNDED, backend="eager")
    check_same(fast, lightvlm.load(made), tiny.inputs(text=(9, 6), images=(1, 1), seed=3), 24)


def test_builds_an_engine_of_every_graph(made):
    """On a machine without a GPU: for a compute capability that is named."""
    trt = tensorrt()
    found, why = parser.installed()
    assert found is not None, why
    assert lightvlm.load(made).manifest["parser"] == found.name == f"tensorrt_rtx {trt.__version__}"
    assert sorted(f.name for f in made.glob("*.onnx")) == STAGES
    for name in STAGES:
        network, wrong = found.network(made / name)
        assert not wrong
        stage = onnx.load(made / name, load_external_data=False).graph
        assert [network.get_input(i).name for i in range(network.num_inputs)] == [i.name for i in stage.input]
        config = found.builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        assert found.builder.build_serialized_network(network, config).nbytes > 10_000


def test_build_script_names_every_graph(made):
    script = made / "build.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=True).returncode == 0
    assert sorted(re.findall(r"--onnx=(\S+)", script.read_text())) == STAGES


def test_says_that_no_parser_is_installed(made, monkeypatch):
    monkeypatch.setattr(parser, "PACKAGES", ("tensorrt_of_nobody",))
    verdict = lightvlm.verify(made)
    assert verdict.skipped == ["TensorRT's parser: not installed (pip install 'lightvlm-fx[tensorrt]')"]
    assert "lint     ok" in str(verdict)
    assert verdict.exit_code == 0


def test_a_parser_that_does_not_start_is_named(monkeypatch):
    class Broken:
        Logger = type("Logger", (), {"INTERNAL_ERROR": 0, "__init__": lambda self, level: None})

        @staticmethod
        def Builder(logger):
            raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(parser, "PACKAGES", ("tensorrt",))
    monkeypatch.setattr(parser.importlib, "import_module", lambda name: Broken)
    assert parser.installed() == (None, "tensorrt does not start: factory function returned nullptr")


SCATTER = graph(
    [helper.make_node("ScatterElements", ["x", "at", "by"], ["y"], "sum", axis=0, reduction="add")],
    [("x", TensorProto.FLOAT, [4, 2]), ("at", TensorProto.INT64, [3, 2]), ("by", TensorProto.FLOAT, [3, 2])],
    [("y", TensorProto.FLOAT, [4, 2])],
)  # fmt: skip


def test_verify_names_what_is_refused(made, tmp_path):
    folder = copied(made, tmp_path / "refused")
    onnx.save(SCATTER, folder / "embed.onnx")
    reseal(folder)
    wrong = lightvlm.verify(folder).lint
    assert "embed.onnx: node sum is a ScatterElements that sums up (add), which the target does not take" in wrong
    tensorrt()
    said = r"embed.onnx: tensorrt_rtx \S+ refuses a node, in importScatterElements: Unsupported reduction type"
    assert [line for line in wrong if re.fullmatch(said, line)]


def test_export_refuses_what_verify_would(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(ToTensorRT, "lower", lambda self, graph: None)
    with pytest.raises(CaptureError, match=r"prefill.onnx: node \S+ is a ScatterElements that sums up \(add\), which"):
        write_bounded(tmp_path / "out", target="tensorrt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("operator", "message"), [("NonZero", "is a NonZero, which the target does not take"),
                                                   ("TopK", "node n is a TopK whose k is not constant")])  # fmt: skip
def test_refuses_what_is_outside_the_dialect(operator, message):
    inputs = [("x", TensorProto.FLOAT, [4]), ("k", TensorProto.INT64, [1])]
    outputs = {"NonZero": ["y"], "TopK": ["v", "y"]}[operator]
    node = helper.make_node(operator, ["x", "k"][: len(outputs)], outputs, "n")
    model = graph([node], inputs, [("y", TensorProto.INT64, [1, 4][-len(outputs) :])])
    [wrong] = TARGETS["tensorrt"].problems(model)
    assert wrong.endswith(message)


def test_refuses_scatters_that_reduce_otherwise():
    model = ir.from_proto(SCATTER)
    node = next(iter(model.graph))
    node.attributes["reduction"] = ir.AttrString("reduction", "max")
    scatter_as_matmul(model)
    [wrong] = TARGETS["tensorrt"].problems(ir.to_proto(model))
    assert wrong == "node sum is a ScatterElements that sums up (max), which the target does not take"


SUMS = [((5, 6), 0, (7, 1)), ((2, 5), 1, (2, 7)), ((2, 3, 5, 4), 2, (2, 3, 7, 1)), ((2, 5, 4), 1, (1, 7, 1))]


@pytest.mark.parametrize(("shape", "axis", "narrow"), SUMS)
def test_sums_as_products(shape, axis, narrow):
    """Repeated indices, expanded along all that follows the axis as PyTorch's index_add and scatter_add do."""
    draw = np.random.default_rng(0)
    wide = tuple(7 if at == axis else n for at, n in enumerate(shape))
    summed = helper.make_node("ScatterElements", ["x", "index", "by"], ["y"], axis=axis, reduction="add")
    model = graph(
        [helper.make_node("Expand", ["at", "wide"], ["index"]), summed],
        [("x", TensorProto.FLOAT, shape), ("at", TensorProto.INT64, narrow), ("by", TensorProto.FLOAT, wide)],
        [("y", TensorProto.FLOAT, shape)], [("wide", np.array(wide))],
    )  # fmt: skip
    given = {name: draw.normal(size=size).astype(np.float32) for name, size in (("x", shape), ("by", wide))}
    given["at"] = draw.integers(0, 5, narrow)
    want = given["x"].copy()
    for place in np.ndindex(wide):
        at = np.broadcast_to(given["at"], wide)[place]
        want[(*place[:axis], at, *place[axis + 1 :])] += given["by"][place]
    assert np.allclose(ran(model, **given), want, atol=1e-5)
    rewritten = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    assert scatter_as_matmul(rewritten) == 1
    proto = ir.to_proto(rewritten)
    assert "ScatterElements" not in {n.op_type for n in proto.graph.node}
    assert np.allclose(ran(proto, **given), want, atol=1e-5)


def test_an_index_that_differs_along_the_rest_is_refused():
    with pytest.raises(CaptureError, match="node sum sums by an index that differs along axes after 0"):
        scatter_as_matmul(ir.from_proto(SCATTER))


def test_integer_weights_in_standard_operators():
    """The same product as ONNX Runtime's own, to the rounding of blocks whose scale changes sign; and TensorRT takes it."""
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(64, 48)).astype(np.float32)
    weight[:32, 0] = 0.0  # a block without a scale
    x = draw.normal(size=(4, 64)).astype(np.float32)
    product = helper.make_node("MatMul", ["x", "w"], ["y"], "n")
    model = graph([product], [("x", TensorProto.FLOAT, [4, 64])], [("y", TensorProto.FLOAT, [4, 48])], [("w", weight)])
    quantised = quantise(ir.from_proto(model), "int8")
    assert [n.op_type for n in quantised.graph] == ["MatMulNBits"]
    assert in_standard_operators(quantised) == 1
    proto = ir.to_proto(quantised)
    assert [n.op_type for n in proto.graph.node] == ["DequantizeLinear", "MatMul"]
    held = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    codes, scales = (held[name] for name in proto.graph.node[0].input)
    assert codes.dtype == np.int8
    assert codes.min() >= -128
    assert (scales > 0).all()
    stored = codes * np.repeat(scales, 32, 0)
    assert (np.abs(stored - weight) <= 1.01 * np.repeat(scales, 32, 0)).all()  # at most one step: half by each of two roundings
    assert np.allclose(ran(proto, x=x), x @ stored, atol=1e-4)
    trt = tensorrt()
    found, _ = parser.installed()
    network = found.builder.create_network(0)
    assert trt.OnnxParser(network, found.logger).parse(proto.SerializeToString())
