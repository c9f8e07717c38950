"""Every op has a body that back ends which know ATen only can trace, and it computes what the op computes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_opcheck import arguments
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import lightvlm_fx.compiler  # noqa: F401 - registers the ops
from lightvlm_fx.ops.bodies import InAten, InPortableAten, bodies, by_top_k

OPS = torch.ops.lightvlm
NAMES = sorted(n.removeprefix("lightvlm::") for n in torch._C._dispatch_get_all_op_names() if n.startswith("lightvlm::"))
CALLS = arguments()
EXACT = 1e-5


def test_finds_the_body_of_every_op():
    found = {op.name().removeprefix("lightvlm::"): body for op, body in bodies().items() if op.namespace == "lightvlm"}
    assert sorted(found) == NAMES
    assert len(NAMES) > 20
    for body in found.values():
        assert callable(body)
        assert not isinstance(body, torch._ops.OpOverload | torch._ops.OpOverloadPacket)


def test_every_op_is_tried_below():
    assert sorted(CALLS) == NAMES


def traced(op, args, mode=InAten):
    """`op` over the tensors of `args`, traced, and those tensors."""
    leaves, spec = pytree.tree_flatten(args)
    at = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]

    def call(*tensors):
        filled = list(leaves)
        for i, x in zip(at, tensors, strict=True):
            filled[i] = x
        return op(*pytree.tree_unflatten(filled, spec))

    tensors = [leaves[i] for i in at]
    with mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_exporting", lambda: True)  # as for torch.export, no value may be read on the host
        return make_fx(call, tracing_mode="real")(*copy.deepcopy(tensors)), tensors


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_is_aten_alone_and_computes_the_same(name):
    for args in CALLS[name]:
        graph, tensors = traced(getattr(OPS, name), args)
        targets = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
        assert targets
        assert not [t for t in targets if "lightvlm" in t]

        mine, theirs = copy.deepcopy(tensors), copy.deepcopy(args)
        got, want = graph(*mine), getattr(OPS, name)(*theirs)
        changed = [x for x in pytree.tree_leaves(theirs) if isinstance(x, Tensor)]  # ops that write into their arguments
        for a, b in zip([*pytree.tree_leaves(got), *mine], [*pytree.tree_leaves(want), *changed], strict=True):
            if a is None or not a.dtype.is_floating_point:
                assert (a is None and b is None) or torch.equal(a, b)
                continue
            finite = torch.isfinite(b)
            assert torch.equal(finite, torch.isfinite(a))
            assert torch.allclose(a[finite].float(), b[finite].float(), rtol=1e-3 if a.itemsize == 2 else EXACT, atol=EXACT)


def test_outside_the_mode_ops_stay_ops():
    args = CALLS["select_tokens"][0]
    graph = make_fx(lambda score: OPS.select_tokens(score, *args[1:]))(args[0])
    assert "lightvlm.select_tokens.default" in {str(n.target) for n in graph.graph.nodes}


def test_writes_along_an_axis_become_scatters():
    """So that a cache stays where it is: index_copy_ and index_fill_ mean the same as before."""
    draw = torch.Generator().manual_seed(0)
    base, new = torch.randn(2, 3, 7, 4, generator=draw), torch.randn(2, 3, 2, 4, generator=draw)
    index = torch.tensor([5, 1])

    def write(x, new):
        return x.clone().index_copy_(2, index, new).index_fill_(2, index[:1], 9.0)

    with InAten():
        graph = make_fx(write)(base, new)
    targets = {str(n.target) for n in graph.graph.nodes}
    assert not [t for t in targets if "index_copy" in t or "index_fill" in t]
    assert [t for t in targets if "scatter" in t]
    assert torch.equal(graph(base, new), write(base, new))


def test_whole_numbers_are_padded_by_concatenation():
    """The CUDA provider of ONNX Runtime has no Pad of them; of floats it has."""
    x = torch.arange(6).view(2, 3)

    def pad(x):
        named = F.pad(input=x, pad=(0, 1), mode="constant")
        return F.pad(x, [1, 2], value=7), F.pad(x.float(), [1, 2], value=7.0), F.pad(x, [0, 0]), named

    with InAten():
        graph = make_fx(pad)(x)
    assert len([n for n in graph.graph.nodes if "constant_pad" in str(n.target)]) == 1
    for got, want in zip(graph(x), pad(x), strict=True):
        assert torch.equal(got, want)


def test_a_padding_query_attends_without_infinities():
    """Attention under the mode takes boolean masks with empty rows, which ONNX's softmax would turn into NaN."""
    q, k, v, _, *rest = CALLS["attention"][0]
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
    mask[0, :, :2] = False
    graph, tensors = traced(OPS.attention, (q, k, v, mask, *rest))
    got, want = graph(*tensors), OPS.attention(q, k, v, mask, *rest)
    real = mask.any(-1).expand(2, q.shape[1], 8)
    if got.shape != q.shape:
        real = real.transpose(1, 2)
    assert torch.isfinite(got).all()
    assert torch.allclose(got[real], want[real], atol=EXACT)


WORTH = {
    "ties": [3.0, 1.0, 3.0, -2.0, 1.0, 1.0, 3.0],
    "infinities": [float("inf"), 0.5, float("-inf"), float("inf"), -3.4e38, float("-inf"), 1e-45],
    "zeros": [0.0, -0.0, 1e-45, -1e-45, -0.0, 0.0, 0.0], "one": [2.0],
}  # fmt: skip


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("what", WORTH)
def test_top_k_is_a_stable_sort(what, descending):
    for dtype in (torch.float32, torch.float16, torch.float64):
        x = torch.tensor([WORTH[what], WORTH[what][::-1]], dtype=dtype)
        for dim, y in ((-1, x), (0, x.T.contiguous())):
            got, want = by_top_k(y, dim, descending), torch.sort(y, dim=dim, descending=descending, stable=True)
            assert torch.equal(got.indices, want.indices)
            assert torch.equal(got.values.signbit(), want.values.signbit())
            assert torch.equal(got.values, want.values)


def test_top_k_is_a_stable_sort_of_many():
    """Where top-k itself leaves the order of equal values open."""
    draw = torch.Generator().manual_seed(0)
    top = torch.iinfo(torch.int64).max
    whole = torch.randint(-3, 4, (2, 3, 2000), generator=draw)
    for x in (whole, whole.float() / 7, torch.randn(2, 3, 2000, generator=draw).half(), torch.where(whole > 2, top, whole)):
        for descending in (False, True):
            got, want = by_top_k(x, -1, descending), torch.sort(x, descending=descending, stable=True)
            assert torch.equal(got.indices, want.indices)


def test_sorts_that_were_traced_before_are_top_k_too():
    """As those of a packed tower are when its stage is written."""
    x = torch.tensor([[3, 1, 3, 2]])
    with InAten():
        before = make_fx(lambda x: (x.argsort(), x.sort(descending=True)[1]))(x)
    with InPortableAten():
        after = make_fx(before)(x)
    assert [n for n in before.graph.nodes if "sort" in str(n.target)]
    assert not [n for n in after.graph.nodes if "sort" in str(n.target)]
    assert [y.tolist() for y in after(x)] == [[[1, 3, 0, 2]], [[0, 2, 3, 1]]]


@pytest.mark.parametrize("name", NAMES)
def test_a_portable_trace_sorts_by_top_k_and_computes_the_same(name):
    for args in CALLS[name]:
        graph, tensors = traced(getattr(OPS, name), args, InPortableAten)
        assert not [str(n.target) for n in graph.graph.nodes if "sort" in str(n.target) or "empty_like" in str(n.target)]
        whole = traced(getattr(OPS, name), args)[0](*copy.deepcopy(tensors))
        for a, b in zip(pytree.tree_leaves(graph(*copy.deepcopy(tensors))), pytree.tree_leaves(whole), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
