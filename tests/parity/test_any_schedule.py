"""Tier 4: under any schedule a row says the same alone, in a batch, and after padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import prompts, schedules
from torch.nn.functional import pad

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.kv import Kv
from lightvlm_fx.presets import PRESETS
from lightvlm_fx.runtime.kv_plan import KvPlan
from lightvlm_fx.schedule import Cut, Schedule
from lightvlm_fx.support import answer, difference

DEPTH, VISUAL = 3, 36
ALONE = 1e-4  # as in test_bounded_cache


@pytest.fixture(scope="module")
def tiny():
    tiny = zoo.build("llava", layers=DEPTH)
    assert tiny.visual_tokens == VISUAL
    return tiny


@pytest.fixture(scope="module")
def unreduced(tiny):
    """Its captures, which know of no schedule, serve every one."""
    return lightvlm.compile(tiny.model, "none", backend="eager")


def padded(inputs, columns):
    """`inputs` with `columns` of padding before them."""
    return inputs | {name: pad(inputs[name], (columns, 0)) for name in ("input_ids", "attention_mask")}


def check_rows(tiny, fast, *, text, images, columns, seed=0, new=8):
    """Assert that each row's logits and tokens are the same in the batch, alone, and after `columns` of padding."""
    together = answer(fast, tiny.inputs(text=text, images=images, seed=seed), new)
    for row in range(len(text)):
        one = tiny.inputs(text=text[row : row + 1], images=images[row : row + 1], seed=seed + row)
        alone = answer(fast, one, new)
        logits = torch.stack(alone.logits)[:, 0]
        for what, other, at in (("in the batch", together, row), ("padded", answer(fast, padded(one, columns), new), 0)):
            off = (torch.stack(other.logits)[:, at] - logits).abs().max() / logits.abs().max()
            assert off <= ALONE, f"row {row} {what}: logits differ by {off:.1e}"
            assert other.sequences[at, -new:].tolist() == alone.sequences[0, -new:].tolist(), f"row {row} {what}"


@settings(max_examples=6)
@given(schedules(DEPTH, VISUAL), prompts(), st.integers(1, 50), st.integers(0, 1000), st.sampled_from([2, 8]))
def test_a_row_is_the_same_alone_in_a_batch_and_padded(tiny, unreduced, schedule, prompt, columns, seed, new):
    try:
        for n in range(1, 200):
            schedule.kv and schedule.kv.capacities(n, DEPTH)
    except ScheduleError:  # a count, shared out unevenly, that leaves a layer less than is protected: no prompt changes that
        return
    check_rows(tiny, unreduced.lightvlm.with_schedule(schedule), **prompt, columns=columns, seed=seed, new=new)


def bounded(**options):
    return Schedule(kv=Kv(**{"capacity": 20, "sinks": 2, "recent": 4} | options))


RAGGED = {"text": (30, 9, 6), "images": (1, 1, 0)}
FOUND = {  # by hand: each mixed its rows, or counted padding, once
    "density by column": bounded(when="prefill", score="density", capacity=1.0, budgets=[0.5, 1.0, 1.5], sinks=0, recent=1),
    "density after the prompt": bounded(score="marks", window=8, prompt="density", sinks=0),
    "pyramid by mask": bounded(when="mask", budgets="pyramid", sinks=0),
    "pyramid by period": bounded(when="periodic", budgets="pyramid", sinks=0, every=4),
    "periods of a longer row": bounded(when="periodic", capacity=48, every=4),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_rows_of_schedules_that_once_mixed_them(tiny, unreduced, name):
    check_rows(tiny, unreduced.lightvlm.with_schedule(FOUND[name]), **RAGGED, columns=40, new=12)


LONG_PADDING = {
    "h2o": {"capacity": 20, "recent": 4}, "streaming-llm": {"capacity": 20}, "scissorhands": {"capacity": 20, "window": 8},
    "lightvlm": {"layers": (1, 2), "capacity": 20, "recent": 4},
}  # fmt: skip


@pytest.mark.parametrize("columns", [1, 64])
@pytest.mark.parametrize("name", [*LONG_PADDING, "periodic"])
def test_padding_beyond_the_capacity_drops_nothing_that_is_new(tiny, unreduced, name, columns):
    """As `padding="max_length"` gives it, where the real tokens fit and where they do not."""
    schedule = bounded(when="periodic") if name == "periodic" else Schedule.preset(name, **LONG_PADDING[name])
    fast = unreduced.lightvlm.with_schedule(schedule)
    for text, images in ((9, 0), (9, 1)):
        inputs = tiny.inputs(text=(text,), images=(images,))
        plain, after = answer(fast, inputs, 6), answer(fast, padded(inputs, columns), 6)
        assert (torch.stack(plain.logits) - torch.stack(after.logits)).abs().max() <= ALONE * torch.stack(plain.logits).abs().max()


def test_an_answer_does_not_depend_on_earlier_prompts(tiny, unreduced):
    """Under budgets that adapt, a graph made for another prompt answers as one of its own."""
    inputs = tiny.inputs(text=(9,), images=(2,), seed=51)
    schedule = Schedule.preset("aircache", capacity=0.3)
    own = answer(unreduced.lightvlm.with_schedule(schedule), inputs, 6)
    used = unreduced.lightvlm.with_schedule(schedule)
    answer(used, tiny.inputs(text=(36,), images=(1,), seed=1), 6)
    assert difference(own, answer(used, inputs, 6)) == 0


@pytest.mark.parametrize("beams", [1, 2])
def test_a_prompt_of_one_token_leaves_its_batch_size_usable(tiny, beams):
    """Its capture is for a length of one; a longer prompt of as many rows, with pictures or without, needs its own."""
    fast, rows = lightvlm.compile(tiny.model, "none", backend="eager"), 2 // beams
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": beams}
    for text, images in ((1, 0), (9, 1), (7, 0), (1, 0), (12, 2)):
        inputs = tiny.inputs(text=(text,) * rows, images=(images,) * rows)
        assert fast.generate(**inputs, **options).equal(tiny.model.generate(**inputs, **options))
    sibling = fast.lightvlm.with_schedule("fastv")
    assert sibling.generate(**tiny.inputs(text=(9,) * rows, images=(1,) * rows), **options).shape[0] == rows


SHARES = [name for name in PRESETS if name in ("look-m", "meda", "vl-cache", "snapkv", "pyramidkv", "h2o", "streaming-llm", "aircache")]


@pytest.mark.parametrize("name", [*SHARES, "lightvlm", "lightvlm when=step"])
def test_a_row_shorter_than_what_is_protected_keeps_everything(tiny, unreduced, name):
    """Nine tokens of text under a quarter of them; beside a longer row they say the same. The report says what is kept."""
    options = ({"layers": (1, 2)} if "lightvlm" in name else {}) | ({"when": "step"} if "step" in name else {})
    fast = unreduced.lightvlm.with_schedule(Schedule.preset(name.split()[0], capacity=0.25, **options))
    check_rows(tiny, fast, text=(9, 30, 5), images=(0, 1, 1), columns=7, new=6)
    kv = fast.lightvlm.schedule.kv
    if kv.of == "all" and kv.sinks + kv.recent + 1 > 3:
        assert str(fast.lightvlm.report).count("capacity=0.25 of a short row is less than sinks + recent + 1 = ") == 1
        assert "of a short row is less than" in str(fast.lightvlm.explain(tiny.inputs(text=(9,), images=(0,))))
    if kv.recent > 9:
        inputs = tiny.inputs(text=(9,), images=(0,))
        assert difference(answer(tiny.model, inputs, 4), answer(fast, inputs, 4)) <= 1e-5


def test_a_plan_of_rows_is_the_plan_of_each(tiny, unreduced):
    """What a row may hold, and at most, is its own, whatever stands beside it."""
    kv = Kv(capacity=0.5, when="prefill", score="text", budgets="density", sinks=0, recent=2)
    schedule = Schedule(cuts=(Cut(layer=1, keep=0.3),), kv=kv)

    def planned(**sizes):
        answer(fast := unreduced.lightvlm.with_schedule(schedule), tiny.inputs(**sizes), 1)
        layout = fast.lightvlm.layout
        return KvPlan.of(layout, layout.plan(schedule), schedule, DEPTH)

    together = planned(**RAGGED)
    for row in range(3):
        alone = planned(text=RAGGED["text"][row : row + 1], images=RAGGED["images"][row : row + 1])
        for what in ("count", "most", "own"):
            assert getattr(together, what)[row].equal(getattr(alone, what)[0]), what


