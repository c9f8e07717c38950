import pytest

from lightvlm_fx.errors import PostconditionError, PreconditionError
from lightvlm_fx.graph.pretty import text
from lightvlm_fx.graph.program import value
from lightvlm_fx.passes.freeze_tokens import FreezeTokens
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passing.pipeline import Pipeline


def rewritten(program, *passes):
    return Pipeline(passes).run(program)[0]


def test_text_alone_asks_and_goes_through_the_mlp(prefill, golden):
    assert text(rewritten(prefill, FreezeTokens(layers=(1,))), "*") == golden


def test_keys_and_values_are_of_all_tokens_and_a_cut_before_still_shortens_them(prefill):
    after = rewritten(prefill, ReduceTokens(layer=1), FreezeTokens(layers=(0, 2)))
    markers = after.markers()
    rows = {layer: [str(value(x).shape[2]) for x in marker.args[:2]] for layer, marker in markers.items()}
    assert rows[0][0] == rows[2][0] != rows[0][1] != rows[2][1]
    assert rows[1][0] == rows[1][1] == rows[2][1]


def test_scores_go_on_reading_the_queries_of_all_tokens(prefill):
    after = rewritten(prefill, ReduceTokens(layer=2, score="received"), FreezeTokens(layers=(1,)))
    q = next(n for n in after.graph.nodes if "score_received" in str(n.target)).args[0]
    assert str(value(q).shape[2]) == str(value(after.sequence()).shape[1])


@pytest.mark.parametrize("layers", [(2, 1), (1, 1), (1, 4), (-1,)])
def test_refuses_layers_unsorted_repeated_or_beyond(prefill, layers):
    with pytest.raises(PreconditionError, match="layers must rise within 0 to 3, got"):
        rewritten(prefill, FreezeTokens(layers=layers))


def test_refuses_tokens_that_are_frozen_already(prefill):
    with pytest.raises(PreconditionError, match="visual tokens are frozen already"):
        rewritten(prefill, FreezeTokens(layers=(1,)), FreezeTokens(layers=(2,)))


def test_refuses_a_graph_of_one_length(prefill):
    fixed = prefill.clone()
    fixed.with_facts(static_length=True)
    with pytest.raises(PreconditionError, match="one sequence length only"):
        rewritten(fixed, FreezeTokens(layers=(1,)))


def test_notices_a_layer_that_still_attends_from_every_token(prefill):
    with pytest.raises(PostconditionError, match="layer 1 still attends from all"):
        FreezeTokens(layers=(1,)).ensures(prefill)
