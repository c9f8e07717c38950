"""Tier 4: what export does to a graph leaves its values as they were."""

import json
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from artifacts import BOUNDED
from onnx import helper, save
from onnx.reference import ReferenceEvaluator
from onnxscript.values import TracedOnnxFunction
from torch import fx, nn

import lightvlm_fx as lightvlm
from lightvlm_fx.artifact.lint import lint
from lightvlm_fx.errors import CaptureError
from lightvlm_fx.exporters.onnx_graph import PARSED, to_onnx
from lightvlm_fx.exporters.onnx_graph import operators as onnx_operators
from lightvlm_fx.exporters.order import least_first
from lightvlm_fx.exporters.precision import cast
from lightvlm_fx.exporting.build import build
from lightvlm_fx.exporting.causal import attend_and_score, leave_out_later_keys
from lightvlm_fx.exporting.export import record_parity
from lightvlm_fx.exporting.stages import Head
from lightvlm_fx.graph.ports import SEGMENT
from lightvlm_fx.methods import operators
from lightvlm_fx.methods.entry_scores.attention import Attention
from lightvlm_fx.methods.token_scores.received import Received
from lightvlm_fx.ops.attention import attend
from lightvlm_fx.ops.segments import PADDING, TEXT


class Layers(nn.Module):
    """Linear layers as models have them: with and without a bias, one tied to an embedding, one that is an output itself."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.plain, self.biased = nn.Linear(8, 6, bias=False), nn.Linear(6, 8)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        y = self.biased(self.plain(x)) + x
        return {"hidden": self.plain(y), "logits": nn.functional.linear(y[:, -1], self.embedding.weight)}  # of two dimensions


def test_operators_are_parsed_once():
    """And not for each graph; onnxscript itself is left as it was."""
    before, counts = vars(TracedOnnxFunction)["function_ir"], []
    for _ in range(2):
        to_onnx("layers", Layers().eval(), {"input_ids": torch.zeros(1, 3, dtype=torch.int64)})
        counts.append(PARSED.fget.cache_info())
    assert counts[1].misses == counts[0].misses > 400
    assert counts[1].hits - counts[0].hits > 400
    assert vars(TracedOnnxFunction)["function_ir"] is before


@pytest.mark.parametrize("gemm", [True, False])
def test_linear_layers(gemm):
    torch.manual_seed(0)
    layers, ids = Layers().eval(), torch.randint(0, 11, (2, 5))
    graph = to_onnx("layers", layers, {"input_ids": ids}, gemm=gemm)
    found = onnx_operators(graph)
    assert (found.get("Gemm", 0), found.get("MatMul", 0)) == ((4, 0) if gemm else (0, 4))
    assert ("Add" in found, "Transpose" in found) == (True, False)
    assert found["Add"] == (1 if gemm else 2)  # a bias is part of its Gemm
    large = [value.name for value in graph.graph.initializers.values() if value.const_value.size == 11 * 8]
    assert len(large) == (1 if gemm else 2)  # a tied weight is one tensor
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = layers(ids)
    for name, got in zip([o.name for o in session.get_outputs()], session.run(None, {"input_ids": ids.numpy()}), strict=True):
        np.testing.assert_allclose(got, expected[name].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("window", [0, 3])
def test_only_causal_masks_leave_keys_out(window, blocks, monkeypatch):
    monkeypatch.setattr("lightvlm_fx.ops.tiles.MOST", 3)
    torch.manual_seed(0)
    segment = torch.tensor([[PADDING, PADDING, TEXT, 0, 0, 0, TEXT, TEXT]])
    here = torch.arange(8)
    mask = ((here[:, None] >= here) & (segment != PADDING)[:, None, :])[:, None]
    if window:
        mask = mask & (here[:, None] - here < window)
    graph = fx.Graph()
    q, k, seg, low = (graph.placeholder(name) for name in ("q", "k", SEGMENT.name, "low"))
    made = graph.call_function(torch.ops.aten.logical_not.default, (low,))  # models make their masks from others
    score = graph.call_function(operators.operator(Received, "score"), (q, k, seg, made, 0.5))
    graph.output((score, graph.call_function(attend, (q, k, k, made, 0.5))))
    module = fx.GraphModule(nn.Module(), graph)
    given = {"q": torch.randn(1, 4, 8, 4), "k": torch.randn(1, 2, 8, 4), SEGMENT.name: segment, "low": ~mask}
    before = module(*given.values())
    changed = leave_out_later_keys(SimpleNamespace(graph_module=module), given, segment, blocks)
    assert changed == (0 if window else 1 + blocks)
    score, out = module(*given.values())
    torch.testing.assert_close(score, before[0])
    torch.testing.assert_close(out[:, 2:], before[1][:, 2:])  # rows of padding see nothing


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_blocks_of_attention_score_their_keys(softcap, counted, monkeypatch):
    """One pass gives what attention and the cache score give apart; a softcap, which scores do not know, keeps them apart."""
    monkeypatch.setattr("lightvlm_fx.ops.tiles.MOST", 3)
    torch.manual_seed(0)
    segment = torch.tensor([[PADDING, PADDING, TEXT, 0, 0, 0, TEXT, TEXT], [TEXT, 0, 0, 0, TEXT, TEXT, TEXT, TEXT]])
    here = torch.arange(8)
    allowed = ((here[:, None] >= here) & (segment != PADDING)[:, None, :])[:, None]
    mask = torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    graph = fx.Graph()
    q, k, v, seg, low, size = (graph.placeholder(name) for name in ("q", "k", "v", SEGMENT.name, "mask", "size"))
    score = graph.call_function(operators.operator(Attention, "prompt"), (q, k, seg, low, 0.5))
    shared = graph.call_function(torch.ops.aten.mean.dim, (score, [1], True))
    graph.output((shared, graph.call_function(attend, (q, k, v, low, 0.5, softcap, *([size] if counted else [])))))
    module = fx.GraphModule(nn.Module(), graph)
    given = {"q": torch.randn(2, 4, 8, 4), "k": torch.randn(2, 2, 8, 4), "v": torch.randn(2, 2, 8, 4), SEGMENT.name: segment, "mask": mask}
    given["size"] = torch.randint(1, 4, (2, 8)).float()
    before = module(*given.values())
    assert leave_out_later_keys(SimpleNamespace(graph_module=module), given, segment, True) == 2
    targets = {node.target for node in module.graph.nodes}
    assert (attend_and_score in targets) == (not softcap)
    score, out = module(*given.values())
    torch.testing.assert_close(score, before[0])
    real = segment != PADDING
    torch.testing.assert_close(out[real], before[1][real])


def test_equal_constants_make_equal_expressions():
    """Each layer brings constants of its own: what it makes of them is still computed once."""

    class Twice(nn.Module):
        def forward(self, x):
            return {"y": sum((x.unsqueeze(1) == x.unsqueeze(2)).float() * torch.arange(i, 4 + i)[None, :, None] for i in (0, 0, 1))}

    graph = to_onnx("twice", Twice(), {"x": torch.tensor([[1, 2, 1, 3]])})
    found = onnx_operators(graph)
    assert (found["Equal"], found["Mul"]) == (1, 2)


class Chain(nn.Module):
    """Layers that each hand something on beside the next layer's input."""

    def forward(self, x):
        out = {}
        for layer in range(4):
            x = torch.tanh(x * (layer + 2))
            out[f"present.{layer}"] = x.softmax(-1).amax(-1)
        return {"logits": x} | out


def test_onnx_runtime_computes_each_layers_outputs_before_the_next_layer(tmp_path):
    graph = to_onnx("chain", Chain(), {"x": torch.randn(2, 8)})
    orders = []
    for reorder in (False, True):
        if reorder:
            least_first(graph)
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.zeros((2, 8), np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        orders.append([e["args"]["op_name"] for e in events if e["name"].endswith("_kernel_time")])
    assert orders[0][-8:] == ["Softmax", "ReduceMax"] * 4  # left alone: all of it after the last layer
    assert [name for name in orders[1] if name in ("Tanh", "Softmax", "ReduceMax")] == ["Tanh", "Softmax", "ReduceMax"] * 4


@pytest.mark.parametrize(("name", "factor"), [("logits_scaling", 0.25), ("logit_scale", 4.0), ("final_logit_softcapping", None)])
def test_heads_that_scale(name, factor):
    torch.manual_seed(0)
    config = SimpleNamespace(**{name: 4.0})
    projection = nn.Linear(8, 5)
    model = SimpleNamespace(get_output_embeddings=lambda: projection, config=SimpleNamespace(get_text_config=lambda: config))
    x = torch.randn(2, 8)
    plain = projection(x)
    expected = plain * factor if factor else torch.tanh(plain / 4) * 4
    torch.testing.assert_close(Head(model)(x), expected)


def test_export_refuses_stages_whose_logits_are_not_the_models(tiny, tmp_path, monkeypatch):
    forward = Head.forward
    monkeypatch.setattr(Head, "forward", lambda self, hidden: forward(self, hidden) * 1.01)  # the same greedy answer
    with pytest.raises(CaptureError, match=r"the prefill stage: apart from the compiled model by 1\.\de-02 of the largest"):
        lightvlm.export(tiny.model, BOUNDED, tmp_path / "out", inputs=tiny.inputs(text=(9,), images=(1,)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("found", "said"), [((2e-4, True), "equal to .*logits 2.0e-04"), ((1e-6, False), "other than")])
def test_export_refuses_what_onnx_runtime_answers_otherwise(tmp_path, monkeypatch, found, said):
    monkeypatch.setattr("lightvlm_fx.artifact.verify.parity", lambda *a: dict(zip(("logits", "tokens_equal"), found, strict=True)))
    with pytest.raises(CaptureError, match=f"on ONNX Runtime the greedy tokens are {said}"):
        record_parity(tmp_path, {"target": "onnxruntime", "dtype": "float32"})
    half = {"target": "onnxruntime", "dtype": "float16"}  # rounds, so may answer otherwise
    record_parity(tmp_path, half)
    assert half["parity"]["logits"] == found[0]


class Merge(nn.Module):
    """A merge of the size that ONNX Runtime cuts up for its threads."""

    def forward(self, hidden, index, went):
        merged, size = torch.ops.lightvlm.merge_tokens(hidden, torch.ones(hidden.shape[:2]), index, went)
        return {"merged": merged, "size": size}


def test_merges_give_the_same_on_several_threads():
    torch.manual_seed(0)
    given = {"hidden": torch.randn(1, 1089, 896), "index": torch.arange(0, 1089, 2)[None, :400], "went": torch.randint(0, 400, (1, 1089))}
    graph = to_onnx("merge", Merge(), given)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = Merge()(**given)
    for _ in range(40):
        found = session.run(list(expected), {name: x.numpy() for name, x in given.items()})
        for got, wanted in zip(found, expected.values(), strict=True):
            np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_lint_refuses_sums_by_scatter_nd(tmp_path):
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in
              (("x", 1, [4]), ("at", 7, [3, 1]), ("by", 1, [3]), ("y", 1, [4]))]  # fmt: skip
    node = helper.make_node("ScatterND", ["x", "at", "by"], ["y"], "sum", reduction="add")
    graph = helper.make_graph([node], "prefill", values[:3], values[3:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "prefill.onnx")
    stage = {"file": "prefill.onnx", "inputs": [], "outputs": [], "operators": {"ScatterND": 1}}
    manifest = {"target": "onnxruntime", "buckets": [{"stages": {"prefill": stage}}]}
    [wrong], _ = lint(tmp_path, manifest, ["CPUExecutionProvider"])
    assert "node sum sums up by ScatterND" in wrong


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")  # 0 / 0 that a Where leaves out
def test_bfloat16_graphs_in_the_reference_implementation(tiny):
    """ONNX Runtime has no bfloat16 kernels on CPU; ONNX's own evaluator has."""
    example = tiny.inputs(text=(9,), images=(1,))
    example["pixel_values"] = example["pixel_values"].bfloat16()
    length = 56  # its GatherElements takes axes of 64 at most
    built = build(cast(tiny.model, "bfloat16"), BOUNDED, example, length, 16)
    asked = built.bucket.inputs
    given = {"input_ids": asked["input_ids"].numpy(), "attention_mask": asked["attention_mask"].numpy()}
    given["picture_tokens"] = built.stages["prefill"].inputs["picture_tokens"].numpy()
    given["pixel_values"] = asked["pixel_values"].float().numpy().astype(ml_dtypes.bfloat16)
    for name in ("vision", "embed", "prefill"):
        stage = built.stages[name]
        evaluator = ReferenceEvaluator(ir.to_proto(to_onnx(name, stage.module, stage.inputs, dynamic=stage.dynamic)))
        given |= dict(zip(evaluator.output_names, evaluator.run(None, {n: given[n] for n in evaluator.input_names}), strict=True))
    assert given["image_features"].dtype == ml_dtypes.bfloat16
    expected = built.bucket.logits[0].float().numpy()
    assert np.abs(given["logits"] - expected).max() <= 5e-2 * np.abs(expected).max()
    assert given["logits"].argmax(-1) == built.bucket.sequences[:, length].numpy()
