"""`explain` before anything runs, and the report after: the same counts, and true ones."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.presets import PRESETS
from lightvlm_fx.schedule import Cut, Schedule

FASTV = Schedule.preset("fastv", layer=1, keep=9)
PYRAMID = Schedule.preset("lightvlm", keep=0.1, layers=(1, 2))


@pytest.fixture(scope="module")
def inputs(llava):
    return llava.inputs(text=(7, 11), images=(1, 2))


@pytest.fixture(scope="module")
def fast(llava, inputs):
    """A compiled model that has answered a batch of two rows and one of a single row."""
    made = lightvlm.compile(llava.model, PYRAMID, backend="eager")
    made.lightvlm.warm_up(inputs)
    return made


def neutral(told):
    """Without seconds, which differ from run to run, and the fingerprint, which has its own test."""
    return re.sub(r"\([0-9a-f]{16}\)", "(fingerprint)", re.sub(r"\d+\.\d s", "_ s", str(told)))


def test_prints_a_table(llava, golden):
    assert neutral(lightvlm.explain(llava.model, FASTV)) == golden


def test_prints_a_table_for_a_batch(llava, inputs, golden):
    assert neutral(lightvlm.explain(llava.model, PYRAMID, inputs)) == golden


def test_takes_a_preset_by_name(llava):
    assert lightvlm.explain(llava.model, "fastv").schedule == Schedule.preset("fastv")


def test_the_full_model_costs_the_full_model(llava):
    for schedule in ("none", Schedule.preset("lightvlm", keep=1.0, layers=(1, 2))):
        told = lightvlm.explain(llava.model, schedule)
        assert told.flops_ratio == told.ideal_speedup == 1
        assert told.kv_bytes == told.full_kv_bytes
        assert told.mean_visual_tokens == 36


def test_text_alone_costs_the_full_model(llava):
    told = lightvlm.explain(llava.model, FASTV, llava.inputs(text=(20,), images=(0,)))
    assert told.flops_ratio == 1
    assert told.visual_per_layer == (0, 0, 0, 0)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl_moe"])
def test_flops_are_those_that_torch_counts(family):
    """Matrices to the digit, experts that run only; attention, which torch counts not here, by formula."""
    tiny = zoo.build(family, layers=2)
    batch = tiny.inputs(text=(7,), images=(1,))
    length = batch["input_ids"].shape[1]
    decoder = tiny.model.get_decoder()
    decoder.set_experts_implementation("eager")  # torch counts no grouped matrix product
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(inputs_embeds=torch.randn(1, length, zoo.HIDDEN), use_cache=False)
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    matrices = sum(n for op, n in counted.items() if not re.search("attention|bmm", op))
    square = 2 * 4 * zoo.HEAD_DIM * length * length * 2  # q k^T and p v under the diagonal, two layers
    assert lightvlm.explain(tiny.model, "none", batch).full_flops == matrices + square


def test_explains_a_schedule_file(llava, tmp_path):
    PYRAMID.save(tmp_path / "pyramid")
    assert lightvlm.explain(llava.model, tmp_path / "pyramid") == lightvlm.explain(llava.model, PYRAMID)


def test_counts_are_those_of_the_run(llava, inputs, fast):
    told = lightvlm.explain(llava.model, PYRAMID, inputs)
    with torch.no_grad():
        cache = fast(**inputs, use_cache=True).past_key_values
    written = (layer.table.position >= 0 for layer in cache.layers)
    assert told.tokens_per_layer == tuple(int(row.sum(1).max()) for row in written)
    text, pictures = inputs["attention_mask"].sum() - 3 * 36, told.visual_per_layer  # three pictures in two rows; the mean of a row
    assert [2 * visual + int(text) for visual in pictures] == [int((layer.table.position >= 0).sum()) for layer in cache.layers]
    prefill = fast.lightvlm.report.of("prefill")[0]
    assert (prefill.tokens_per_layer, prefill.visual_per_layer) == (told.tokens_per_layer, told.visual_per_layer)
    assert fast.lightvlm.explain(inputs) == told


def test_kv_bytes_are_those_of_the_run(llava, inputs, fast):
    told = lightvlm.explain(llava.model, PYRAMID, inputs)
    with torch.no_grad():
        layers = fast(**inputs, use_cache=True).past_key_values.layers
    assert told.kv_bytes == sum(x.nbytes for layer in layers for x in (layer.keys, layer.values))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_explained(llava, name):
    given = {"fastv": {"keep": 8}, "lightvlm": {"capacity": 500}, "look-m": {"recent": 4}, "meda": {"recent": 4}}
    given |= {"illava": {"layers": (1, 2)}, "sparsevlm": {"layers": (1, 2, 3)}}  # their shares of the depth fall together in 4 layers
    schedule = Schedule.preset(name, **given.get(name, {}))
    told = str(lightvlm.explain(llava.model, schedule))
    assert ("cache bounded" in told) == (schedule.kv is not None)
    assert name in told


def test_says_how_a_cache_is_bounded_and_what_it_takes(llava):
    told = lightvlm.explain(llava.model, Schedule.preset("lightvlm", keep=1.0, capacity=50, layers=(1, 2)))
    assert str(told).splitlines()[-1] == (
        "cache bounded at every step: 50 entries a layer by attention, density after the prompt, 30% for pictures, "
        "counted merging, one choice for 5 layers, 4 sinks, 17 recent"
    )
    every = lightvlm.explain(llava.model, Schedule.preset("sparsevila", keep=1.0, capacity=0.25))
    assert every.kv_bytes == every.full_kv_bytes * (1 + every.entries_per_layer[0] / every.tokens_per_layer[0])


def test_counts_and_figures_are_written_out(llava, monkeypatch):
    """A count of 2000 is not 2e+03, and 12345 GFLOP are not 1.234e+04."""
    ids = torch.full((1, 3000), zoo.FIRST_TEXT)
    ids[:, 1:2501] = zoo.IMAGE
    monkeypatch.setattr(llava.model.config, "image_seq_length", 2500, raising=False)
    told = lightvlm.explain(llava.model, Schedule.preset("fastv", layer=1, keep=2000), {"input_ids": ids})
    assert "keep 2000" in str(told)
    assert "prefill FLOPs 12345 of 45678 GFLOP" in str(replace(told, flops=12345.4e9, full_flops=45678e9))


def test_runs_nothing(llava, monkeypatch):
    monkeypatch.setattr(torch.nn.Linear, "forward", None)
    lightvlm.explain(llava.model, PYRAMID)


def test_the_report_prints_what_was_done(fast, golden):
    assert neutral(fast.lightvlm.report) == golden


def test_the_report_says_when_nothing_was_done_yet(llava):
    report = lightvlm.compile(llava.model, FASTV, backend="eager").lightvlm.report
    assert str(report).endswith("nothing compiled yet: call warm_up(inputs) or generate()")


def test_the_report_is_data_too(fast):
    data = json.loads(json.dumps(fast.lightvlm.report.data()))
    assert data["schedule"] == "lightvlm"
    assert data["fingerprint"] == PYRAMID.fingerprint
    assert [b["stage"] for b in data["buckets"]] == ["prefill", "decode"]
    for bucket in data["buckets"]:
        for step in bucket["passes"]:
            assert step["matched"] == step["expected"] > 0


def test_survivors_are_as_many_as_the_schedule_says(fast, inputs):
    fast.lightvlm.warm_up(inputs)
    for cut in range(2):
        left = fast.lightvlm.survivors[f"segment.{cut}"]
        wanted = PYRAMID.budgets(36)[cut]
        assert [int((left[0] == 0).sum()), int((left[1] == 0).sum()), int((left[1] == 1).sum())] == [
            wanted
        ] * 3


def test_the_graph_can_be_read_at_any_stage(fast, golden):
    """What two cuts of the default method insert, in a batch with masks."""
    assert fast.lightvlm.graph("prefill", only_pass="reduce-tokens") == golden


def test_more_cuts_than_layers_are_refused_before_anything_runs(llava):
    cuts = [Cut(layer=0.1 * n, keep=1 - 0.1 * n) for n in range(1, 9)]
    with pytest.raises(lightvlm.LightVLMError, match="8 cuts need 8 layers after the first, but the decoder has 4"):
        lightvlm.explain(llava.model, Schedule(cuts=cuts))
