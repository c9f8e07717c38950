"""What bound-prefill inserts, what it refuses, and that masking in place of dropping gives the same entries."""

import pytest
import torch

from lightvlm_fx.errors import PreconditionError, UnknownName
from lightvlm_fx.graph.pretty import text
from lightvlm_fx.ops.segments import TEXT
from lightvlm_fx.passes.bound_prefill import BoundPrefill
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.testing import real_inputs, run, tiny_program

OPS = torch.ops.lightvlm


@pytest.fixture(scope="module")
def prefill():
    return tiny_program("prefill", layers=2)


def rewritten(program, *passes):
    return Pipeline(list(passes)).run(program)[0]


@pytest.mark.parametrize("options", [
    {"sizes": (0, 1), "sinks": 1, "recent": 2, "running": "attention"},
    {"sizes": (0, 0), "score": "age", "sinks": 1, "recent": 0},
    {"sizes": (0, 0), "score": "density", "shared": True, "sinks": 1, "recent": 2, "visual_share": 0.5, "merge": "counted",
     "running": "attention"},
    {"sizes": (0, 0), "score": "elite", "sinks": 0, "recent": 0, "of_visual": True, "budgets": "strength"},
    {"sizes": (0, 0), "score": "question", "shared": True, "sinks": 0, "recent": 0, "of_visual": True, "merge": "counted", "store": True},
], ids=["attention", "age", "density", "elite", "question"])  # fmt: skip
def test_inserts(prefill, golden, options):
    assert text(rewritten(prefill, BoundPrefill(**options)), "*") == golden


def test_reads_what_the_cuts_left(prefill, golden):
    after = rewritten(prefill, ReduceTokens(layer=1), BoundPrefill(sizes=(0, 1), sinks=1, recent=1))
    assert text(after, "bound-prefill") == golden
    entries = run(after, real_inputs(after))
    assert (entries["entry.1"] < entries["index.0"].shape[1]).all()


def test_hands_on_the_keys_and_values_that_stay(prefill):
    after = rewritten(prefill, BoundPrefill(sizes=(0, 1), sinks=1, recent=2))
    inputs = [x[:5] if name == "kv_stay_1" else x for name, x in zip(after.inputs, real_inputs(after), strict=True)]
    before = run(rewritten(prefill), inputs[: len(prefill.inputs)])
    now = run(after, inputs)
    for layer, length in ((0, 6), (1, 5)):
        entry = now[f"entry.{layer}"]
        assert entry.shape[2] == length
        for what in ("keys", "values"):
            full = before[f"{what}.{layer}"]
            assert now[f"{what}.{layer}"].equal(full.gather(2, entry.unsqueeze(-1).expand(*entry.shape, full.shape[3])))
        assert bool((entry[..., 0] == 0).all())
        last = full.shape[2] - 1
        assert entry[..., -2:].unique().tolist() == [last - 1, last]
    assert now["hidden"].equal(before["hidden"])


def test_scores_of_what_is_handed_on_come_with_the_choices(prefill):
    """After all layers, close together, where the code is warm; scores that read queries do so while there are any."""
    for score, after_all in (("density", True), ("attention", False)):
        names = [node.name for node in rewritten(prefill, BoundPrefill(sizes=(0, 0), score=score, shared=True)).graph.nodes]
        assert (names.index("kv_score_0") > names.index("attention_1")) is after_all


@pytest.mark.parametrize("merge", ["counted", "pivot"])
def test_layers_of_one_choice_merge_as_each_alone(prefill, merge):
    after = rewritten(prefill, BoundPrefill(sizes=(0, 0), score="density", shared=True, layers=2, sinks=1, recent=2, merge=merge))
    segment = torch.tensor([[TEXT, 0, 0, 0, 0, 0, TEXT, TEXT]])
    given = {"visual_segment": segment, "kv_count": torch.full((1, 2), 5), "kv_stay_0": torch.empty(5)}
    inputs = [given.get(name, x) for name, x in zip(after.inputs, real_inputs(after), strict=True)]
    before = run(rewritten(prefill), inputs[: len(prefill.inputs)])
    now = run(after, inputs)
    entry = now["entry.0"]
    assert now["entry.1"].equal(entry)
    assert entry.shape[2] == 5
    index = torch.where(entry >= 0, entry, 0)
    for layer in range(2):
        held = before[f"keys.{layer}"], before[f"values.{layer}"]
        if merge == "pivot":
            alone = OPS.kv_merge_pivot(*held, segment, index, entry)
        else:
            went = OPS.kv_went_counted(before["keys.0"], before["values.0"], segment, index, entry)
            alone = OPS.kv_merge_counted(*held, None, None, segment, index, went)
            assert now[f"kv_size.{layer}"].equal(alone[2])
            assert bool((alone[2] > 1).any())
        for what, expected in zip(("keys", "values"), alone, strict=False):
            assert now[f"{what}.{layer}"].equal(expected)
            assert now[f"{what}.{layer}"].is_contiguous()
    owned = [x.untyped_storage().data_ptr() for name, x in now.items() if name.startswith(("keys", "values", "entry", "kv_size"))]
    assert len(set(owned)) == len(owned)  # steps write into them


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"sizes": (0,)}, PreconditionError, r"expected a size for each of 2 layers, numbered from 0, got \(0,\)"),
    ({"sizes": (0, 2)}, PreconditionError, r"expected a size for each of 2 layers, numbered from 0, got \(0, 2\)"),
    ({"sizes": (0, 0), "running": "window"}, PreconditionError, "running must be a KV score that steps carry on, got 'window'"),
    ({"sizes": (0, 0), "budgets": "pyramid"}, PreconditionError, "budgets 'pyramid' are known beforehand"),
    ({"sizes": (0, 0), "budgets": "strength"}, PreconditionError, "budgets 'strength' need score 'elite', got 'attention'"),
    ({"sizes": (0, 0), "score": "elit"}, UnknownName, "no KV score named 'elit'; did you mean 'elite'"),
])  # fmt: skip
def test_refuses(prefill, options, error, message):
    with pytest.raises(error, match=message):
        rewritten(prefill, BoundPrefill(**options))


def test_refuses_to_bound_twice(prefill):
    once = BoundPrefill(sizes=(0, 0))
    with pytest.raises(PreconditionError, match="entries are bounded already"):
        rewritten(prefill, once, once)
