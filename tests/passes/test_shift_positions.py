import pytest
import torch

from lightvlm_fx.errors import PostconditionError, PreconditionError
from lightvlm_fx.graph.pretty import text
from lightvlm_fx.passes.shift_positions import ShiftPositions
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.testing import real_inputs, run


def answers(program, **changes):
    """Outputs with some inputs replaced."""
    named = dict(zip(program.inputs, real_inputs(program), strict=True)) | changes
    return run(program, [named[name] for name in program.inputs])


def test_computes_cos_and_sin_again_from_each_layer_on(decode, golden):
    after, _ = Pipeline([ShiftPositions(layers=(1, 2))]).run(decode)
    assert text(after, "*") == golden


def test_a_shift_of_nothing_changes_no_value(decode):
    after, _ = Pipeline([ShiftPositions(layers=(1, 2))]).run(decode)
    nothing = torch.zeros(1, dtype=torch.int64)
    for name, tensor in answers(decode).items():
        assert answers(after, shift_0=nothing, shift_1=nothing)[name].equal(tensor)


def test_each_layer_sees_the_shift_of_its_span(decode):
    """Keys carry the positions: layer 0 those of the model, layer 1 three less, layers 2 and 3 five less."""
    after, _ = Pipeline([ShiftPositions(layers=(1, 2))]).run(decode)
    got = answers(after, shift_0=torch.tensor([3]), shift_1=torch.tensor([5]))
    ids = torch.tensor(
        [[8]]
    )  # a step without a cache attends to itself: positions reach the keys and nothing else
    for layer, shift in ((0, 0), (1, 3), (2, 5), (3, 5)):
        torch.testing.assert_close(
            got[f"keys.{layer}"], answers(decode, position_ids=ids - shift)[f"keys.{layer}"]
        )
    torch.testing.assert_close(got["hidden"], answers(decode)["hidden"])


@pytest.mark.parametrize("layers", [(2, 1), (1, 1), (1, 4), (-1,)])
def test_refuses_layers_unsorted_repeated_or_beyond(decode, layers):
    with pytest.raises(PreconditionError, match="layers must rise within 0 to 3, got"):
        Pipeline([ShiftPositions(layers=layers)]).run(decode)


def test_refuses_positions_that_are_shifted_already(decode):
    after, _ = Pipeline([ShiftPositions(layers=(1,))]).run(decode)
    with pytest.raises(
        PreconditionError, match="expected positions as the model computes them, these are shifted already"
    ):
        Pipeline([ShiftPositions(layers=(2,))]).run(after)


def test_refuses_position_triples(decode):
    triples = decode.clone()
    triples.with_facts(positions_rank=3)
    with pytest.raises(PreconditionError, match=r"needs positions \[B, Q\], this model has M-RoPE triples"):
        Pipeline([ShiftPositions(layers=(1,))]).run(triples)


def test_refuses_a_result_without_its_inputs(decode):
    with pytest.raises(
        PostconditionError, match=r"shift-positions\{layers=1/2/\}: inputs shift_\[0, 1\] are missing"
    ):
        ShiftPositions(layers=(1, 2)).ensures(decode)
