import pytest
import torch

from lightvlm_fx.errors import PostconditionError
from lightvlm_fx.graph.pretty import text
from lightvlm_fx.passes.bound_prefill import BoundPrefill
from lightvlm_fx.passes.lower_attention import LowerAttention
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passes.share_softmax import ShareSoftmax
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.testing import real_inputs, run, tiny_program

SHARED = {"shared": True, "sinks": 1, "recent": 2, "visual_share": 0.5, "merge": "counted"}
OF_TEXT = BoundPrefill(sizes=(0, 0), score="density", running="attention", **SHARED)
OF_ALL = BoundPrefill(sizes=(0, 1), sinks=1, recent=2, running="attention")
CUT = ReduceTokens(layer=1, score="density", combine="merge", proportional=True)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "masked"])
def prefill(request):
    return tiny_program("prefill", layers=2, **({"text": (7, 11), "images": (1, 2)} if request.param else {}))


@pytest.mark.parametrize("bound", [OF_TEXT, OF_ALL], ids=["text", "all"])
def test_attention_and_its_sums_become_one(golden, bound):
    after, _ = Pipeline([CUT, bound, LowerAttention(), ShareSoftmax()]).run(tiny_program("prefill", layers=2))
    assert text(after, "share-softmax") == golden


@pytest.mark.parametrize("bound", [OF_TEXT, OF_ALL], ids=["text", "all"])
def test_changes_no_value(prefill, bound):
    """But for scores of pictures that stand above all text, which nothing compares."""
    passes = [CUT, bound, LowerAttention()]
    before, (after, _) = Pipeline(passes).run(prefill)[0], Pipeline([*passes, ShareSoftmax()]).run(prefill)
    inputs = real_inputs(before)
    want, got = run(before, inputs), run(after, inputs)
    for name, tensor in want.items():
        guarded = tensor >= 1e4 if bound is OF_TEXT and name.startswith("score.") else torch.zeros_like(tensor, dtype=torch.bool)
        torch.testing.assert_close(got[name].masked_fill(guarded, 0), tensor.masked_fill(guarded, 0))
        assert (got[name][guarded] >= 1e4).all()


def test_other_scores_stay(prefill):
    passes = [BoundPrefill(sizes=(0, 1), score="age", sinks=1, recent=2, running="marks"), LowerAttention()]
    _, steps = Pipeline([*passes, ShareSoftmax()]).run(prefill)
    assert steps[-1].result.matched == 0


def test_refuses_a_result_with_attention_computed_twice(prefill):
    left, _ = Pipeline([OF_ALL, LowerAttention()]).run(prefill)
    with pytest.raises(PostconditionError, match="share-softmax: kv_score_0 still computes the attention of attend"):
        ShareSoftmax().ensures(left)
