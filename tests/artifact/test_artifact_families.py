"""Tier 5: an artifact of every family answers as the compiled model, under cuts and a bounded cache."""

import pytest
from artifacts import BOUNDED, check_same, once

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.compat import SINCE
from lightvlm_fx.errors import InputError
from lightvlm_fx.schedule import Cut, Schedule

NEW = 16  # and prompts of 19 tokens or more: every answer turns the cache over
CUT = {"layer": 1, "keep": 0.3}
TIGHT = {
    "qwen2_5_vl": Schedule(cuts=(Cut(**CUT, combine="merge", proportional=True),), kv=Schedule.preset("h2o", capacity=14).kv),
    "qwen3_vl": Schedule.preset("lightvlm", keep=0.3, layers=(1,), capacity=14, recent=4, sinks=2),
    "internvl": Schedule(cuts=(Cut(**CUT, positions="compact"),), kv=Schedule.preset("scissorhands", capacity=14, window=8).kv),
    "smolvlm": Schedule(cuts=(Cut(**CUT, score="density", combine="recover"),), kv=Schedule.preset("streaming-llm", capacity=14).kv),
    "gemma3": Schedule.preset("lightvlm", keep=0.3, layers=(1,), capacity=14, recent=4, sinks=2),
}
OTHERS = {"another picture": {"text": (9,), "seed": 11}, "shorter": {"text": (6,), "seed": 4}, "longer": {"text": (20,), "seed": 5}}



@pytest.fixture(scope="module", params=list(TIGHT))
def pair(request, shelf):
    """A family's tiny model, the same compiled, and its artifact."""
    tiny, schedule = zoo.build(request.param, layers=2), TIGHT[request.param]

    def write(folder):
        lightvlm.export(tiny.model, schedule, folder, inputs=tiny.inputs(text=(9,), images=(1,)), prompt_tokens=48)

    vlm = lightvlm.load(once(shelf, request.param, write))
    return tiny, lightvlm.compile(tiny.model, schedule, backend="eager"), vlm


def test_answers_as_the_compiled_model(pair):
    tiny, fast, vlm = pair
    for other in OTHERS.values():
        check_same(fast, vlm, tiny.inputs(images=(1,), **other), NEW)


@pytest.mark.compat
def test_llava_answers_as_the_compiled_model(bounded, tiny):
    vlm, fast = lightvlm.load(bounded), lightvlm.compile(tiny.model, BOUNDED, backend="eager")
    for other in OTHERS.values():
        check_same(fast, vlm, tiny.inputs(images=(1,), **other), 30)


@pytest.mark.since(*SINCE["aria"])
def test_a_masked_picture_is_not_taken_for_a_whole_one(shelf):
    """The mask of a picture's real pixels is a constant of the bucket: another one is refused."""
    tiny = zoo.build("aria", layers=1)
    inputs = tiny.inputs(text=(9,), images=(1,))

    def write(folder):
        lightvlm.export(tiny.model, "none", folder, inputs=inputs, prompt_tokens=32, new_tokens=4)

    vlm = lightvlm.load(once(shelf, "aria", write))
    assert vlm.generate(**inputs, max_new_tokens=1).shape == (1, inputs["input_ids"].shape[1] + 1)
    half = inputs["pixel_mask"].clone()
    half[:, :, 32:] = False
    with pytest.raises(InputError, match="pixel_mask differs"):
        vlm.generate(**inputs | {"pixel_mask": half}, max_new_tokens=1)
