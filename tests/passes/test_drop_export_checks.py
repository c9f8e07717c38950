import pytest
import torch

from lightvlm_fx.errors import PostconditionError
from lightvlm_fx.graph.pretty import diff, text
from lightvlm_fx.passes.drop_export_checks import CHECKS, DropExportChecks
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.testing import real_inputs, run


def test_drops_checks_and_casts_that_change_nothing(prefill, golden):
    """The rotary embedding before and after: one cast changes the type and stays."""
    after, _ = Pipeline([DropExportChecks()]).run(prefill)
    lines = diff(text(prefill, noise=True), text(after, noise=True)).splitlines()
    assert "\n".join(lines[:30]) == golden


def test_changes_no_value(programs):
    for program in programs.values():
        after, _ = Pipeline([DropExportChecks()]).run(program)
        inputs = real_inputs(program)
        expected, got = run(program, inputs), run(after, inputs)
        assert list(expected) == list(got)
        for name, tensor in expected.items():
            assert tensor.equal(got[name])


def test_leaves_casts_that_change_the_type(prefill):
    after, _ = Pipeline([DropExportChecks()]).run(prefill)
    kinds = [
        (n.args[0].meta["val"].dtype, n.meta["val"].dtype)
        for n in after.graph.nodes
        if n.target == torch.ops.aten.to.dtype
    ]
    assert kinds == [(torch.int64, torch.float32)]


def test_says_that_there_is_nothing_to_do(prefill):
    after, _ = Pipeline([DropExportChecks()]).run(prefill)
    again, (step,) = Pipeline([DropExportChecks()]).run(after)
    assert (step.result.matched, step.result.expected, step.result.note) == (0, 0, "the graph has none")
    assert text(again, noise=True) == text(after, noise=True)


def test_refuses_a_result_with_checks_left(prefill):
    assert any(n.target in CHECKS for n in prefill.graph.nodes)
    with pytest.raises(
        PostconditionError, match="drop-export-checks: checks left in the graph: _assert_scalar_default, "
    ):
        DropExportChecks().ensures(prefill)
