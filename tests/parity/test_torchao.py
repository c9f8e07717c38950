"""Models whose decoder torchao quantised, compiled: tokens and logits as uncompiled."""

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.support import answer

quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")


def int8():
    return quantization.Int8WeightOnlyConfig(set_inductor_config=False)  # its settings are of the whole process


def int4():
    try:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError:
        pytest.skip("this torchao has no weights of 4 bits for a processor")
    return PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False)


CONFIGS = [int8, pytest.param(int4, marks=pytest.mark.full)]


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("config", CONFIGS)
def test_answers_as_uncompiled(config, backend):
    """Weights in pieces of a class of their own go through capture, rewriting and compiling."""
    tiny = zoo.build("llava", layers=2)
    quantization.quantize_(tiny.model.get_decoder(), config())
    inputs = tiny.inputs(text=(9,), images=(1,))
    want = answer(tiny.model, inputs, 6)
    got = answer(lightvlm.compile(tiny.model, "none", backend=backend), inputs, 6)
    assert got.sequences.tolist() == want.sequences.tolist()
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("config", CONFIGS)
def test_cuts_and_bounded_caches_compile(config):
    """The same under inductor as under the rewritten graphs alone."""
    tiny = zoo.build("llava", layers=4)
    quantization.quantize_(tiny.model.get_decoder(), config())
    schedule, inputs = lightvlm.Schedule.preset("lightvlm", keep=0.5, capacity=20), tiny.inputs(text=(9,), images=(1,))
    got, want = (answer(lightvlm.compile(tiny.model, schedule, backend=backend), inputs, 6) for backend in ("inductor", "eager"))
    assert got.sequences.tolist() == want.sequences.tolist()
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=1e-4, rtol=1e-3)
