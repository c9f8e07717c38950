import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from lightvlm_fx.graph.pretty import diff, excerpt, line, text, typed
from lightvlm_fx.graph.program import Facts, Program
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passing.pipeline import Pipeline

aten = torch.ops.aten


@pytest.fixture
def small():
    """relu, a check that torch.export left behind, and a sum that a pass made, over one weight."""
    graph, root = fx.Graph(), torch.nn.Module()
    root.register_buffer("weight", torch.ones(4))
    with FakeTensorMode():
        x = graph.placeholder("inputs_embeds")
        x.meta["val"] = torch.empty(1, 3, 4)
        weight = graph.get_attr("weight")
        weight.meta["val"] = torch.empty(4)
        y = graph.create_node("call_function", aten.relu.default, (x,), name="relu")
        y.meta |= {"val": torch.empty(1, 3, 4), "nn_module_stack": {"k": ("decoder.layers.0.mlp", object)}}
        check = graph.call_function(aten._assert_tensor_metadata.default, (y,), {"dtype": torch.float32})
        check.meta["val"] = None
        z = graph.create_node("call_function", aten.add.Tensor, (y, weight), {"alpha": 2}, name="total")
        z.meta |= {"val": torch.empty(1, 3, 4, dtype=torch.bfloat16), "lightvlm_pass": "add-up"}
        split = graph.create_node("call_function", aten.split.Tensor, (z, 2, -1), name="halves")
        split.meta["val"] = [torch.empty(1, 3, 2), torch.empty(1, 3, 2)]
        graph.output((z,))
    return Program(fx.GraphModule(root, graph), "prefill", Facts(layers=1, hidden=4), ("inputs_embeds",))


def test_prints_a_program(small, golden):
    assert text(small) == golden


def test_prints_the_lines_of_one_pass(small):
    body = "  %total: bf16[1, 3, 4] = aten.add(%relu, %weight, alpha=2)   # <- add-up\n"
    assert text(small, "add-up").split("\n", 1)[1] == body
    assert text(small, "*") == text(small, "add-up")
    assert text(small, "other").split("\n", 1)[1] == "\n"


def test_prints_checks_of_torch_export_when_asked(small):
    assert "_assert_tensor_metadata" not in text(small)
    assert "aten._assert_tensor_metadata(%relu, dtype=torch.float32)" in text(small, noise=True)


def test_an_excerpt_marks_the_node(small):
    marked = excerpt(small, small.node("total"), around=1).splitlines()
    assert marked[0].startswith("    %relu:")
    assert marked[1].startswith("  > %total:")
    assert marked[2].startswith("    %halves: (f32[1, 3, 2], f32[1, 3, 2]) = aten.split(%total, 2, -1)")


def test_an_excerpt_shows_a_hidden_node_too(small):
    marked = excerpt(small, small.node("_assert_tensor_metadata_default"))
    assert "  > %_assert_tensor_metadata_default: None = aten._assert_tensor_metadata(%relu" in marked


def test_a_line_names_the_module_it_was_traced_from(small):
    assert line(small.node("relu")).endswith("= aten.relu(%inputs_embeds)   # @layers.0.mlp")
    assert line(small.output_node()) == "return (%total)"


def test_types_are_short(small):
    assert typed(torch.empty(2, 3, dtype=torch.float16)) == "f16[2, 3]"
    assert typed(torch.empty(1, dtype=torch.complex64)) == "torch.complex64[1]"
    assert typed((torch.empty(1, dtype=torch.bool), 3)) == "(b8[1], 3)"
    assert typed(None) == "None"


def test_a_diff_shows_what_a_pass_did(prefill):
    after, _ = Pipeline([ReduceTokens(layer=1)]).run(prefill)
    lines = diff(text(prefill), text(after)).splitlines()
    assert any(x.startswith("+  %index_0: i64[1, ") and x.endswith("<- reduce-tokens") for x in lines)
    assert any(x.startswith("-  %view_3: ") for x in lines)
    assert diff(text(prefill), text(prefill)) == ""


def test_a_copy_of_a_program_prints_the_same(prefill, decode):
    for program in (prefill, decode):
        assert text(program.clone(), noise=True) == text(program, noise=True)
