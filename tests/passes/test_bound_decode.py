"""What bound-decode makes of a step, and what it refuses."""

import pytest

from lightvlm_fx.errors import PreconditionError, UnknownName
from lightvlm_fx.graph.pretty import text
from lightvlm_fx.passes.bound_decode import BoundDecode
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.testing import tiny_program


@pytest.fixture(scope="module")
def decode():
    return tiny_program("decode", layers=2)


@pytest.mark.parametrize("options", [
    {"sinks": 4, "recent": 8},
    {"append": True, "score": "age", "shared": True, "capacity": 24},
    {"append": True, "limited": True, "score": "marks", "biased": (1,)},
], ids=["overwrite", "append", "mask"])  # fmt: skip
def test_inserts(decode, golden, options):
    after, _ = Pipeline([BoundDecode(**options)]).run(decode)
    assert text(after, "*") == golden


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"score": "ages"}, UnknownName, "no KV score named 'ages'; did you mean 'age'"),
    ({"capacity": -1}, PreconditionError, "capacity must be a number of slots, or 0 for any, got -1"),
])  # fmt: skip
def test_refuses_options(decode, options, error, message):
    with pytest.raises(error, match=message):
        Pipeline([BoundDecode(**options)]).run(decode)
