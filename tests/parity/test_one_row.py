"""Steps of one row on a processor: products as sums that inductor makes loops of, also over weights in whole numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.nn import functional as F

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.exporters import regions
from lightvlm_fx.exporters.one_row import LONGEST, SUMS, as_sums, one_row, one_row_mm
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import answer, difference

ATEN = torch.ops.aten


@given(n=st.sampled_from([1, 2, 7, 64, LONGEST, LONGEST + 2, LONGEST + 3, 3 * LONGEST]), m=st.integers(1, 9), rank=st.integers(1, 3),
       dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), biased=st.booleans(), apart=st.booleans())  # fmt: skip
def test_gives_what_linear_gives(n, m, rank, dtype, biased, apart):
    draw = torch.Generator().manual_seed(n + m)
    x, weight, bias = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((1,) * (rank - 1) + (2 * n,), (m, n), (m,)))
    x, bias = x[..., ::2] if apart else x[..., :n], bias if biased else None
    near = {"rtol": 2e-2, "atol": 2e-2 * n**0.5} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5 * n**0.5}
    torch.testing.assert_close(one_row(x, weight, bias), F.linear(x, weight, bias), **near)
    if rank == 2:
        torch.testing.assert_close(one_row_mm(x, weight.T), x @ weight.T, **near)


@pytest.mark.compat
@pytest.mark.parametrize(("part", "whole"), [
    (lambda x: x[:, -1:], False),
    (lambda x: (2 * x)[:, 1:2].transpose(0, 1), False),
    (lambda x: x.split(1, 1)[2], False),
    (lambda x: x[:, 2], False),
    (lambda x: x.sum(1).view(1, 1, 6), True),
    (lambda x: (x.transpose(1, 2) @ x).flatten(1)[:, None].contiguous(), True),
], ids=["last", "made", "split", "select", "sum", "views"])  # fmt: skip
def test_a_row_of_a_larger_tensor_keeps_its_product(part, whole):
    """And under inductor each is right."""
    x = torch.randn(1, 5, 6)
    weight, more = torch.randn(4, part(x).shape[-1]), torch.randn(3, 4)  # a second product reads what the first gives
    traced = make_fx(lambda x, weight, more: F.linear(F.linear(part(x), weight), more), pre_dispatch=True)(x, weight, more)
    FakeTensorProp(traced).propagate(x, weight, more)
    as_sums(traced.graph)
    first, second = [node for node in traced.graph.nodes if node.target in (one_row, ATEN.linear.default)]
    assert (first.target == one_row, second.target) == (whole, one_row)
    traced.recompile()
    got = torch.compile(traced, dynamic=False)(x, weight, more)
    torch.testing.assert_close(got, F.linear(F.linear(part(x), weight), more))


@pytest.mark.compat
def test_a_row_is_read_where_the_caller_has_it():
    """What a graph is given may itself begin anywhere in memory."""
    x, weight = torch.randn(1, 5, 6), torch.randn(4, 6)
    compiled = torch.compile(one_row, dynamic=False)
    for place in (4, 0, 2):
        row = x[:, place : place + 1]
        torch.testing.assert_close(compiled(row, weight), F.linear(row, weight))


def step(model, schedule="none", **options):
    """A compiled model, and the graphs that inductor was given for its steps of one row."""
    graphs = []
    with pytest.MonkeyPatch.context() as patch:
        real = regions.inductor
        patch.setattr(regions, "inductor", lambda graph, inputs, mode: graphs.append(graph) or real(graph, inputs, mode))
        fast = lightvlm.compile(model, schedule, **options)
        answer(fast, zoo.build("llava", layers=2).inputs(text=(9,), images=(1,)), 3)
    return fast, graphs


def targets(graphs):
    return {node.target for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("prepack", [False, True])
def test_steps_have_no_other_product(prepack):
    """And prompts have theirs."""
    tiny, schedule = zoo.build("llava", layers=2), Schedule.preset("lightvlm", keep=0.5, layers=(1,), capacity=30)
    fast, graphs = step(tiny.model, schedule, prepack=prepack)
    sums = [graph for graph in graphs if one_row in targets([graph])]
    assert sums
    assert not targets(sums) & {ATEN.linear.default, ATEN.mm.default, regions.PACKED}
    assert targets(graphs) & {ATEN.linear.default, regions.PACKED}
    eager = lightvlm.compile(tiny.model, schedule, backend="eager")
    for text, images in (((9,), (1,)), ((8, 12), (1, 1))):  # one row, and two, which no sums are made for
        inputs = tiny.inputs(text=text, images=images)
        assert difference(answer(eager, inputs), answer(fast, inputs)) <= 1e-5


class Bytes(torch.nn.Module):
    """A linear layer that keeps its weight in int8, written plainly."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("whole", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return F.linear(x, self.whole.to(x.dtype) * self.scale, self.bias)


@pytest.mark.full
def test_weights_in_whole_numbers_are_read_as_they_are():
    """No floating numbers are made of them in memory at a step."""
    tiny = zoo.build("llava", layers=2)
    for layer in tiny.model.get_decoder().layers:
        for of in (layer.self_attn, layer.mlp):
            for name, linear in list(of.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(of, name, Bytes(linear))
    fast, graphs = step(tiny.model)
    whole = [n for graph in graphs for n in graph.graph.nodes if n.target is one_row and n.args[1].op == "call_function"]
    assert len(whole) >= 7
    inputs = tiny.inputs(text=(9,), images=(1,))
    assert difference(answer(lightvlm.compile(tiny.model, "none", backend="eager"), inputs), answer(fast, inputs)) <= 1e-5


def test_other_devices_keep_their_products():
    graph = torch.fx.Graph()
    x, weight = (graph.placeholder(name) for name in ("x", "weight"))
    node = graph.call_function(ATEN.linear.default, (x, weight))
    for device, wanted in (("meta", ATEN.linear.default), ("cpu", one_row)):
        x.meta["val"] = torch.empty(1, 1, 4, device=device)
        as_sums(graph)
        assert node.target == wanted
    assert set(SUMS.values()) == {one_row, one_row_mm}
