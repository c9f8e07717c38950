"""Tier 5: one artifact of a family answers pictures of any size and number up to its bounds, as the compiled model does."""

from dataclasses import replace

import pytest
import torch
from artifacts import check_same, once, with_picture

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import InputError
from lightvlm_fx.schedule import Cut, Schedule

NEW = 10
CUTS = Schedule.preset("lightvlm", keep=0.3, layers=(1,))
SCHEDULES = {
    "cut": CUTS,
    "cache": Schedule(cuts=(Cut(layer=1, keep=0.3, combine="merge", proportional=True),), kv=Schedule.preset("h2o", capacity=14).kv),
    "budgets": Schedule.preset("aircache", capacity=0.25),
}
EVERY = ["llava", "internvl", "smolvlm", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "llava_next", "gemma3"]
BATCHES = {  # text tokens and pictures of each row
    "whole": {"text": (9, 9), "images": (2, 2)}, "one picture": {"text": (9, 9), "images": (1, 1), "seed": 3},
    "one row": {"text": (12,), "images": (2,), "seed": 4}, "ragged": {"text": (9, 6), "images": (1, 2), "seed": 5},
    "one without": {"text": (9, 7), "images": (0, 1), "seed": 6}, "short": {"text": (5,), "images": (1,), "seed": 7},
    "text": {"text": (8, 3), "images": (0, 0), "seed": 8}, "one row of text": {"text": (11,), "images": (0,), "seed": 9},
}  # fmt: skip
SHAPES = [(4, 4), (2, 6), (8, 6), (10, 4), (6, 8)]  # patches of pictures with a grid; the example's is 6 x 8
PINPOINTS = {(48, 24): 33, (24, 48): 9 + 3 * 7, (48, 48): 9 + 6 * 7, (30, 48): 9 + 4 * 7, (20, 48): 9 + 3 * 7}


def with_size(tiny, height, width):
    """LLaVA-NeXT with a picture of another size: its tiles, and a token for each place that is no padding, and each line's end."""
    rows, columns = {(48, 24): (2, 1), (24, 48): (1, 2), (48, 48): (2, 2), (30, 48): (2, 2), (20, 48): (1, 2)}[height, width]
    tokens = PINPOINTS[height, width]
    span, picture = zoo.span(tokens), zoo.tiles(1 + rows * columns, 24, (height, width))
    return replace(tiny, recipe=replace(tiny.recipe, span=span, picture=picture))


def sized(tiny):
    """The family with pictures of other sizes, where it has any."""
    if tiny.model_type.startswith("qwen"):
        return [with_picture(tiny, *shape) for shape in SHAPES]
    return [tiny]


@pytest.fixture(scope="module")
def compiled():
    """Captured once for all schedules of a family."""
    return {}


@pytest.fixture(scope="module", params=[(family, name) for family in EVERY for name in SCHEDULES], ids="-".join)
def pair(request, shelf, compiled):
    """A tiny model, the same compiled, and its artifact: two rows of two pictures at most."""
    family, name = request.param
    tiny = zoo.build(family, layers=2)
    plain = compiled.setdefault(family, lightvlm.compile(tiny.model, "none", backend="eager"))
    inputs = tiny.inputs(text=(9, 9), images=(2, 2))

    def write(folder):
        length = inputs["input_ids"].shape[1] + 8
        lightvlm.export(tiny.model, SCHEDULES[name], folder, inputs=inputs, prompt_tokens=length, new_tokens=NEW)

    vlm = lightvlm.load(once(shelf, f"any-{family}-{name}", write))
    return tiny, plain.lightvlm.with_schedule(SCHEDULES[name]), vlm


def test_answers_as_the_compiled_model(pair):
    tiny, fast, vlm = pair
    [bucket] = vlm.manifest["buckets"]
    assert bucket["vision"]["kind"] != "fixed", bucket["vision"]["why"]
    for kind in sized(tiny):
        for batch in BATCHES.values():
            check_same(fast, vlm, kind.inputs(**batch), NEW)
