"""Linear layers that read packed copies of their weights: the same answers, whatever becomes of the weights afterwards."""

import gc

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import NotSupported
from lightvlm_fx.ops.packed_linear import can_pack, packed_bytes, packed_linear
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import answer, difference

NEAR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest logit
needs = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this processor's oneDNN has no bfloat16")


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs)], ids=str)
def test_answers_are_the_same_also_after_weights_were_written_to_or_replaced(dtype):
    tiny, schedule = zoo.build("llava", layers=3), Schedule.preset("fastv", layer=1)
    model = tiny.model.to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tiny.inputs(text=(9, 40), images=(1, 2)).items()}
    fast = lightvlm.compile(model, schedule, prepack=True)
    plain = lightvlm.compile(model, schedule, backend="eager" if dtype == torch.float32 else "inductor")  # which rounds less often

    def same():
        expected, got = answer(plain, inputs), answer(fast, inputs)
        assert difference(expected, got) <= NEAR[dtype]
        return expected.logits[0]

    assert "prepack: copies of weights take up to" in str(fast.lightvlm.report)
    first = same()
    assert packed_bytes() > 0
    with torch.no_grad():
        for weight in model.get_decoder().layers.parameters():
            weight.mul_(1.1)
    second = same()
    assert not torch.equal(first, second)
    layer = model.get_decoder().layers[1].mlp.down_proj
    layer.weight.data = layer.weight.data.flip(0).contiguous()  # the same parameter over other numbers
    assert not torch.equal(second, same())


def test_copies_go_with_their_weights():
    gc.collect()  # what another test left
    before = packed_bytes()
    weight, x = torch.nn.Parameter(torch.randn(64, 48), requires_grad=False), torch.randn(40, 48)
    torch.testing.assert_close(packed_linear(x, weight), x @ weight.T)
    assert packed_bytes() == before + 64 * 48 * 4
    del weight
    gc.collect()
    assert packed_bytes() == before


@pytest.mark.parametrize("options", [{"backend": "eager"}, {"static": True}, {"mode": "reduce-overhead"}])
def test_refuses_where_nothing_is_compiled_by_layer(options):
    with pytest.raises(NotSupported, match=r"leave backend, static and torch.compile options at their defaults"):
        lightvlm.compile(zoo.build("llava").model, "none", prepack=True, **options)


def test_refuses_numbers_that_the_processor_has_no_packed_products_of():
    with pytest.raises(NotSupported, match=r"got torch.float64 on cpu; leave prepack out"):
        lightvlm.compile(zoo.build("llava").model.double(), "none", prepack=True)
