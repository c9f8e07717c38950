"""What docs/add-a-pass.md says of a pass of another distribution, followed: no catalogue knows it."""

from dataclasses import dataclass

import pytest
import torch

from lightvlm_fx.errors import OrderError, PreconditionError
from lightvlm_fx.passes import CATALOGUE
from lightvlm_fx.passes.lower_attention import LowerAttention
from lightvlm_fx.passing.pass_base import Pass, PassResult
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.testing import check_pass, real_inputs, run, tiny_program

CLAMP = torch.ops.aten.clamp.default


@dataclass(frozen=True)
class ClampHidden(Pass):
    """Bounds the hidden states that leave the decoder.

    Before:    output(h[B,S,D], ...)
    After:     c[B,S,D] = aten.clamp(h, -limit, limit);  output(c, ...)
    Ensures:   nothing that leaves is above the limit.
    Source:    ours.
    """

    limit: float = 1.0

    name = "clamp-hidden"
    stages = ("prefill", "decode")
    after = ("lower-attention",)

    def requires(self, program):
        if program.output_node().args[0][0].target == CLAMP:
            raise PreconditionError(f"{self}: the hidden states are bounded already")

    def call(self, program):
        end = program.output_node()
        hidden, *others = end.args[0]
        with program.graph.inserting_before(end):
            bounded = program.graph.call_function(CLAMP, (hidden, -self.limit, self.limit))
        end.args = ((bounded, *others),)
        return PassResult(1, 1)

    def ensures(self, program):
        assert program.output_node().args[0][0].target == CLAMP


def test_one_line_checks_the_contract():
    assert "clamp-hidden" not in CATALOGUE
    check_pass(tiny_program("prefill"), ClampHidden(limit=0.25))


def test_runs_in_a_pipeline_beside_ours(programs):
    check_pass(programs["decode"], ClampHidden())
    program = programs["prefill"]
    plain, _ = Pipeline([LowerAttention()]).run(program)
    after, steps = Pipeline([LowerAttention(), ClampHidden(limit=0.25)]).run(program)
    assert [(step.pass_text, step.delta) for step in steps[1:]] == [("clamp-hidden{limit=0.25}", "+1 aten.clamp")]
    inputs = real_inputs(program)
    hidden = run(plain, inputs)["hidden"]
    assert hidden.abs().max() > 0.25
    torch.testing.assert_close(run(after, inputs)["hidden"], hidden.clamp(-0.25, 0.25))


def test_its_order_is_held():
    with pytest.raises(OrderError, match="clamp-hidden must run after lower-attention"):
        Pipeline([ClampHidden(), LowerAttention()])
