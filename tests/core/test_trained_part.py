"""A pass that brings a weight of its own, as parts do that were trained for a schedule."""

from dataclasses import dataclass

import pytest
import torch

from lightvlm_fx.exporters.torch_compile import lower
from lightvlm_fx.passes.lower_attention import LowerAttention
from lightvlm_fx.passing.pass_base import Pass, PassResult
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.testing import real_inputs, run


def trained(number, width):
    """What stands for a file of trained weights."""
    return torch.randn(width, generator=torch.Generator().manual_seed(number))


@dataclass(frozen=True)
class Shift(Pass):
    """Adds a trained row to every hidden state that leaves the decoder."""

    number: int = 0

    name = "shift"
    stages = ("prefill",)

    def requires(self, program):
        pass

    def call(self, program):
        end, row = program.output_node(), program.add_weight("trained_row", trained(self.number, program.facts.hidden))
        with program.graph.inserting_before(end):
            hidden = program.graph.call_function(torch.ops.aten.add.Tensor, (end.args[0][0], row))
        end.args = ((hidden, *end.args[0][1:]),)
        return PassResult(1, 1)

    def ensures(self, program):
        assert "trained_row" in dict(program.graph_module.named_parameters())


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_a_pass_brings_a_weight_of_its_own(prefill, backend):
    row = trained(3, prefill.facts.hidden)
    plain, _ = Pipeline([LowerAttention()]).run(prefill)
    shifted, _ = Pipeline([Shift(3), LowerAttention()]).run(prefill)
    inputs = real_inputs(plain)
    want = run(plain, inputs)["hidden"] + row
    got = lower(shifted, backend, {})(*inputs)[0]
    torch.testing.assert_close(got, want)
    assert not hasattr(prefill.graph_module, "trained_row")  # the captured graph is another's, too
    with pytest.raises(AssertionError, match="there is a weight trained_row already"):
        shifted.add_weight("trained_row", row)
