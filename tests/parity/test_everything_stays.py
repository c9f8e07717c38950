"""Tier 5: every preset that reduces visual tokens, told to keep all of them, is the identity."""

import math

import pytest
from references import NEW, tiny, unreduced

from lightvlm_fx import presets
from lightvlm_fx.bench.memory import FRAME, video
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import answer, difference

EXACT = 1e-5  # of the largest logit
ALL = tiny("llava").visual_tokens  # as a count, which no compiler takes for no cut
# Options by which all stays. Shares of 1.0 stand where there are no counts.
WHOLE = {
    "cdpruner": {"keep": ALL}, "dart": {"layer": 2, "keep": ALL}, "divprune": {"keep": ALL}, "downsample": {"side": 1.0},
    "dynamic-vlm": {"tokens": 10**6, "most": 10**6}, "fastervlm": {"keep": ALL}, "fastv": {"keep": ALL},
    "feather": {"layers": (1, 2), "keep": 1.0}, "folder": {"keep": ALL}, "fourier": {"side": 1.0},
    "hawk": {"keep": ALL}, "illava": {"layers": (2,), "keep": ALL}, "lightvlm": {"layers": (2,), "keep": ALL},
    "meteor": {"layer": 2, "keep": ALL}, "pool": {"side": 1.0}, "prumerge": {"keep": ALL}, "prumerge+": {"keep": ALL},
    "pyramiddrop": {"layers": (1, 2), "keep": (ALL, ALL)}, "random": {"layers": (2,), "keep": ALL}, "score": {"keep": ALL},
    "sparsevila": {"keep": ALL, "capacity": 1.0}, "sparsevlm": {"layers": (1, 2), "keep": (ALL, ALL)}, "tome": {"keep": 1.0},
    "uniform": {"layers": (2,), "keep": ALL}, "v2drop": {"layers": (1, 2), "keep": (ALL, ALL)},
    "visionzip": {"dominant": ALL - 2, "contextual": 2}, "vispruner": {"keep": ALL},
}  # fmt: skip
VIDEOS = {"dycoke": {"keep": 1.0}, "framefusion": {"keep": 1.0}, "fastvid": {"keep": 1.0}, "fourier": {"side": 1.0}, "pool": {"side": 1.0}}


def test_no_preset_is_left_out():
    """Those without cuts freeze layers, which no option makes the identity, or bound the cache: test_bounded_cache.py."""
    made = {name: Schedule.preset(name) for name in presets.PRESETS}
    assert {name for name, schedule in made.items() if schedule.cuts} == {*WHOLE, *VIDEOS}


@pytest.mark.parametrize("name", WHOLE)
def test_pictures_stay_whole(name):
    inputs = tiny("llava").inputs(text=(7, 9), images=(2, 1))
    fast = unreduced("llava").lightvlm.with_schedule(Schedule.preset(name, **WHOLE[name]))
    assert difference(answer(unreduced("llava"), inputs, NEW), answer(fast, inputs, NEW)) <= EXACT


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_stay_whole(name):
    inputs = video(6 * math.prod(FRAME))
    fast = unreduced("qwen2_5_vl").lightvlm.with_schedule(Schedule.preset(name, **VIDEOS[name]))
    assert difference(answer(unreduced("qwen2_5_vl"), inputs, NEW), answer(fast, inputs, NEW)) <= EXACT
