import pytest
import torch

from lightvlm_fx.errors import PostconditionError
from lightvlm_fx.graph.pretty import text
from lightvlm_fx.passes.lower_attention import LowerAttention
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.testing import real_inputs, run


@pytest.mark.parametrize("kind", ["programs", "masked_programs"])
def test_replaces_every_marker(request, kind, golden):
    after, _ = Pipeline([LowerAttention()]).run(request.getfixturevalue(kind)["prefill"])
    assert text(after, "*") == golden


@pytest.mark.parametrize("kind", ["programs", "masked_programs"])
def test_changes_no_value(request, kind):
    program = request.getfixturevalue(kind)["prefill"]
    after, _ = Pipeline([LowerAttention()]).run(program)
    inputs = real_inputs(program)
    for name, tensor in run(program, inputs).items():
        torch.testing.assert_close(run(after, inputs)[name], tensor)


def test_refuses_a_result_with_markers_left(prefill):
    with pytest.raises(PostconditionError, match=r"lower-attention: markers left in layers \[0, 1, 2, 3\]"):
        LowerAttention().ensures(prefill)
