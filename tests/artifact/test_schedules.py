"""Tier 5: every pattern of a bounded cache as an artifact, over answers longer than the cache."""

import pytest
from artifacts import check_same, once

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.kv import Kv
from lightvlm_fx.schedule import Cut, Schedule
from lightvlm_fx.support import ALL

NEW = 28
COMPACT = Cut(layer=1, keep=0.25, positions="compact")  # PyramidDrop's


def bound(**options):
    return Kv(**{"capacity": 20, "sinks": 2, "recent": 4} | options)


SCHEDULES = {  # h2o, scissorhands and streaming-llm are in test_artifact_families.py
    "none": Schedule.preset("lightvlm", keep=ALL, layers=(1,)),
    "mask": Schedule(kv=bound(when="mask")),
    "periodic": Schedule(kv=bound(when="periodic", every=6)),
    "snapkv after compact positions": Schedule(cuts=(COMPACT,), kv=Schedule.preset("snapkv", capacity=14, window=4).kv),
    "aircache": Schedule.preset("aircache", capacity=0.25),
    "sparsevila": Schedule.preset("sparsevila", capacity=0.4),  # its cut reads the vision tower
    "look-m": Schedule.preset("look-m", capacity=20, recent=4),
    "lightvlm, a share": Schedule.preset("lightvlm", keep=0.5, layers=(1,), capacity=0.4),
}
ENDLESS = ("periodic",)


@pytest.fixture(scope="module")
def compiled(tiny):
    """Captured once for all schedules."""
    return lightvlm.compile(tiny.model, "none", backend="eager")


@pytest.mark.parametrize("name", SCHEDULES)
def test_answers_as_the_compiled_model(name, shelf, tiny, compiled):
    def write(folder):
        lightvlm.export(tiny.model, SCHEDULES[name], folder, inputs=tiny.inputs(text=(9,), images=(1,)), prompt_tokens=56, new_tokens=NEW)

    vlm = lightvlm.load(once(shelf, name.replace(" ", "-"), write))
    fast = compiled.lightvlm.with_schedule(SCHEDULES[name])
    [bucket] = vlm.manifest["buckets"]
    assert bucket["new_tokens"] == (0 if name in ENDLESS else NEW)
    assert bucket["compact_every"] == (6 if name == "periodic" else 0)
    for other in ({"text": (9,), "seed": 7}, {"text": (6,), "seed": 8}, {"text": (18,), "seed": 9}):
        check_same(fast, vlm, tiny.inputs(images=(1,), **other), NEW)


def test_a_prompt_padded_beyond_the_capacity_loses_nothing(tiny, tmp_path):
    """An example that fits the cache, a bucket that does not: padding up to the bucket must not push tokens out."""
    schedule = Schedule.preset("h2o", capacity=60, recent=4)
    lightvlm.export(tiny.model, schedule, tmp_path / "out", inputs=tiny.inputs(text=(9,), images=(1,)), prompt_tokens=96, new_tokens=8)
    vlm, fast = lightvlm.load(tmp_path / "out"), lightvlm.compile(tiny.model, schedule, backend="eager")
    for text in (9, 40):  # below the capacity and above it
        inputs = tiny.inputs(text=(text,), images=(1,))
        expected = fast.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)[:, -6:]
        got = vlm.generate(**{name: x.numpy() for name, x in inputs.items()}, max_new_tokens=6, min_new_tokens=6)[:, -6:]
        assert got.tolist() == expected.tolist()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "paddleocr_vl"])
def test_salience_of_a_tower_with_its_patches_in_another_order(family, tmp_path):
    """By windows, or row by row; the stage is made for the example's sizes."""
    tiny, schedule = zoo.build(family, layers=2), Schedule(cuts=(Cut(layer=0, score="salience", keep=0.4),))
    lightvlm.export(tiny.model, schedule, tmp_path / "out", inputs=tiny.inputs(text=(9, 9), images=(2, 2)), new_tokens=4)
    vlm, fast = lightvlm.load(tmp_path / "out"), lightvlm.compile(tiny.model, schedule, backend="eager")
    assert "image_salience" in {out["name"] for out in vlm.manifest["buckets"][0]["stages"]["vision"]["outputs"]}
    check_same(fast, vlm, tiny.inputs(text=(9, 9), images=(2, 2), seed=7), 4)
