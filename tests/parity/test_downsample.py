"""Tier 5: pictures made smaller before the vision tower, against the model's own tower run on pictures that were resized beforehand."""

import math

import pytest
import torch
from references import CASES, run_reference, tiny, unreduced
from torch.nn import functional as F

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import NotSupported, ScheduleError
from lightvlm_fx.methods.base import Picture
from lightvlm_fx.methods.counts.lattice import Lattice
from lightvlm_fx.schedule import Cut, Schedule, TowerCut
from lightvlm_fx.support import answer, difference

EXACT = 1e-5  # of the largest logit
FAMILIES = ("llava", "internvl", "paligemma")  # a summary token; pixel shuffle, which needs whole squares of patches; neither
SURVIVED = {"layer": 0, "score": "survived"}
INSIDE = TowerCut(layer=0, keep=0.5, score="unlike-mean")


def middle(rows, small):
    """Of each of `small` parts of a side, the token that its middle lies in; the later one where it lies between two."""
    return [math.floor((i + 0.5) * rows / small) for i in range(small)]


def features(model, picture, side):
    """Of one picture [1, C, H, H] the features [M, D] of a picture of so many pixels."""
    resized = F.interpolate(picture, size=(side, side), mode="bicubic", antialias=True)
    flag = {} if model.config.model_type == "internvl" else {"interpolate_pos_encoding": True}
    inner, hooks = model.model, []
    if flag:
        tower = model.model.vision_tower
        hooks.append(tower.register_forward_pre_hook(lambda m, a, k: (a, k | flag), with_kwargs=True))
    out = inner.get_image_features(resized).pooler_output
    for hook in hooks:
        hook.remove()
    out = torch.cat(list(out)) if isinstance(out, list | tuple) else out
    return out.reshape(-1, out.shape[-1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", [0.5, 0.75])
def test_as_pictures_resized_beforehand(family, case, side):
    """Places, features and logits, as if the prompt had been that short."""
    rows = math.isqrt(tiny(family).visual_tokens)
    small = int(rows * side)

    def ruled(seen):
        pixels = seen.inputs.get("pixel_values")
        size = 0 if pixels is None else pixels.shape[-1] * small // rows
        at = middle(rows, small)
        places = [r * rows + c for r in at for c in at]
        parts = () if pixels is None else pixels.split(1)
        return [(places, features(seen.model, part, size)) for part in parts]

    run_reference(family, case, Schedule.preset("downsample", side=side), {0: ruled}, EXACT, (0,))


def test_places_that_stay_are_kept_where_it_is_asked_for():
    schedule = Schedule.preset("downsample", positions="keep")
    inputs = tiny("llava").inputs(text=(9,), images=(1,))
    both = [answer(unreduced("llava").lightvlm.with_schedule(s), inputs) for s in (schedule, Schedule.preset("downsample"))]
    assert difference(*both) > EXACT


@pytest.mark.full
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_artifact_answers_alike(family, target, tmp_path):
    small, schedule = zoo.build(family, layers=2), Schedule.preset("downsample")
    lightvlm.export(small.model, schedule, tmp_path / "out", inputs=small.inputs(text=(9,), images=(1,)), new_tokens=4, target=target)
    fast, vlm = lightvlm.compile(small.model, schedule, backend="eager"), lightvlm.load(tmp_path / "out")
    for seed in range(2):
        inputs = small.inputs(text=(9,), images=(1,), seed=seed)
        wanted = fast.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)[:, -4:]
        got = vlm.generate(**{key: x.numpy() for key, x in inputs.items()}, max_new_tokens=4, min_new_tokens=4)[:, -4:]
        assert got.tolist() == wanted.tolist()


@pytest.mark.full
def test_inductor_answers_alike():
    schedule = Schedule.preset("downsample")
    inputs = tiny("llava").inputs(text=(9, 6), images=(1, 2))
    fast = lightvlm.compile(tiny("llava").model, schedule, backend="inductor")
    assert difference(answer(unreduced("llava").lightvlm.with_schedule(schedule), inputs), answer(fast, inputs)) <= 1e-4
    [bucket] = fast.lightvlm.report.vision
    assert bucket.stage == "vision"


def test_a_schedule_file_says_it_all_and_goes_on(tmp_path):
    """Smaller pictures, then LightVLM in the layers."""
    small = Schedule.preset("downsample", side=0.75)
    both = Schedule(name="both", downsample=0.75, cuts=(*small.cuts, *Schedule.preset("lightvlm", keep=0.2, layers=(2,)).cuts))
    both.save(tmp_path / "both.toml")
    assert Schedule.load(tmp_path / "both.toml") == both
    assert both.fingerprint != small.fingerprint != Schedule.preset("downsample").fingerprint
    fast = unreduced("llava").lightvlm.with_schedule(tmp_path / "both.toml")
    answer(fast, tiny("llava").inputs(text=(9,), images=(1,)))
    left = [fast.lightvlm.survivors[f"index.{i}"].shape[1] for i in range(2)]
    tokens = tiny("llava").visual_tokens
    assert left[0] - left[1] == Lattice(side=0.75).tokens(Picture(tokens), tokens) - math.floor(0.2 * tokens + 0.5)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("qwen2_5_vl", "takes pictures of every size: bound their pixels in the processor"),
        ("llava_next", "its processor decides by a picture's size how many tiles it has"),
        ("smolvlm", "which part of them is real"),
        ("gemma3", "its tower does not take smaller pictures"),
    ],
)
def test_refuses_other_towers(family, why):
    other = zoo.build(family, layers=2)
    fast = lightvlm.compile(other.model, "downsample", backend="eager")
    with pytest.raises(NotSupported, match=why):
        answer(fast, other.inputs(text=(9,), images=(1,)))


def test_one_token_stays_at_least():
    fast = unreduced("llava").lightvlm.with_schedule(Schedule.preset("downsample", side=0.05))
    inputs = tiny("llava").inputs(text=(9,), images=(1,))
    answer(fast, inputs)
    [row] = fast.lightvlm.survivors["index.0"].tolist()
    assert len(row) == inputs["input_ids"].shape[1] - tiny("llava").visual_tokens + 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"cuts": ()}, "by a first cut with layer=0"),
        ({"cuts": (Cut(keep=0.25, **SURVIVED),)}, "keep=lattice:side=0.5"),
        ({"cuts": (Cut(keep=Lattice(side=0.6), **SURVIVED),)}, "keep=lattice:side=0.5"),
        ({"cuts": (Cut(keep=Lattice(side=0.5), **SURVIVED),), "tower": (INSIDE,)}, "cannot both be"),
    ],
)
def test_refuses_schedules_that_say_two_things(options, why):
    with pytest.raises(ScheduleError, match=why):
        Schedule(downsample=0.5, **options)
