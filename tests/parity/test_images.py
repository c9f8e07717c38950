"""Tier 5: features of pictures from one graph for pictures of every size, in the form that the model's own code gives them."""

import math

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.bench.memory import FRAME, video
from lightvlm_fx.errors import InputError
from lightvlm_fx.passing.report import Report
from lightvlm_fx.runtime.images import ImageFeatures
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import answer, difference

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "gemma3", "paligemma",
            "aya_vision", "vipllava")  # fmt: skip
OWN_CODE = ("mistral3", "llava_onevision", "ovis2")  # that tell towers sizes by rules of their own, or say more than features
NEAR = 1e-5  # of the largest


def stand_in(tiny, **options):
    report = Report("a model", "none", "", "eager")
    given = {"backend": "eager", "options": {}, "static": False} | options
    own = tiny.model.model.get_image_features
    made = ImageFeatures(tiny.model, "model", own, report, Schedule.preset("none"), lambda *told: None, **given)
    return made, report


def pictures(tiny, count, seed=0):
    words = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
    return {k: v for k, v in tiny.inputs(text=(12,), images=(count,), seed=seed).items() if k not in words}


def flat(x):
    return [x] if isinstance(x, torch.Tensor) else [y for one in x for y in flat(one)]


@pytest.mark.parametrize("family", FAMILIES)
def test_gives_what_the_models_own_code_gives(family):
    tiny = zoo.build(family, layers=2)
    features, report = stand_in(tiny)
    with torch.no_grad():
        for count, seed in ((1, 0), (3, 1), (2, 2)):
            given = pictures(tiny, count, seed)
            own, ours = tiny.model.model.get_image_features(**given, return_dict=True), features(**given, return_dict=True)
            assert type(ours) is type(own)
            for name in ("pooler_output", "deepstack_features"):
                theirs, mine = getattr(own, name, None), getattr(ours, name, None)
                assert type(mine) is type(theirs)
                if theirs is not None:
                    assert [x.shape for x in flat(mine)] == [x.shape for x in flat(theirs)]
                    for x, y in zip(flat(mine), flat(theirs), strict=True):
                        assert float((x - y).abs().max()) <= NEAR * float(y.abs().max())
    assert not report.warnings
    assert len(report.vision) == 1  # for one picture too


@pytest.mark.parametrize("family", OWN_CODE)
def test_the_models_own_code_runs_where_no_graph_can_and_the_report_says_so(family):
    tiny = zoo.build(family, layers=2)
    features, report = stand_in(tiny)
    given = pictures(tiny, 2)
    with torch.no_grad():
        own, ours = tiny.model.model.get_image_features(**given, return_dict=True), features(**given, return_dict=True)
    assert all(torch.equal(x, y) for x, y in zip(flat(ours.pooler_output), flat(own.pooler_output), strict=True))
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("vision: the model's own code runs, uncompiled (")


def test_a_call_that_asks_for_more_runs_the_models_own_code_unless_the_config_says_the_same():
    tiny = zoo.build("llava", layers=2)
    features, report = stand_in(tiny)
    given, layer = pictures(tiny, 1), tiny.model.config.vision_feature_layer
    with torch.no_grad():
        features(**given, vision_feature_layer=layer)
        assert len(report.vision) == 1
        assert not report.warnings
        other, own = features(**given, vision_feature_layer=1), tiny.model.model.get_image_features(**given, vision_feature_layer=1)
    assert torch.equal(flat(other.pooler_output)[0], flat(own.pooler_output)[0])
    [said] = report.warnings
    assert said == "vision: the model's own code runs, uncompiled (get_image_features() was called with vision_feature_layer=1)"


def test_follows_weights_that_change_and_modules_that_are_replaced():
    tiny = zoo.build("llava", layers=2)
    features, report = stand_in(tiny)
    given, own = pictures(tiny, 2), tiny.model.model.get_image_features
    projector = tiny.model.model.multi_modal_projector
    with torch.no_grad():
        features(**given)
        projector.linear_2.weight.mul_(2)
        assert torch.allclose(flat(features(**given).pooler_output)[0], flat(own(**given).pooler_output)[0], atol=1e-5)
        assert len(report.vision) == 1
        projector.linear_2 = torch.nn.Linear(projector.linear_2.in_features, projector.linear_2.out_features)
        assert torch.allclose(flat(features(**given).pooler_output)[0], flat(own(**given).pooler_output)[0], atol=1e-5)
        assert len(report.vision) == 2


def test_compiles_nothing_while_frozen():
    tiny = zoo.build("llava", layers=2)
    features, _ = stand_in(tiny)
    with torch.no_grad():
        features(**pictures(tiny, 1))
        features.freeze(True)
        features(**pictures(tiny, 2, seed=3))
        with pytest.raises(InputError, match="not warmed up, and compiling is frozen"):
            features(pictures(tiny, 1)["pixel_values"].double())


def test_the_source_is_left_as_it_was():
    tiny = zoo.build("qwen2_5_vl", layers=2)
    features, _ = stand_in(tiny)
    visual = tiny.model.model.visual
    before = visual.config._attn_implementation, [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in visual.modules()]
    with torch.no_grad():
        features(**pictures(tiny, 2))
    assert (visual.config._attn_implementation, [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in visual.modules()]) == before


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_compiled_model_answers_with_it(family):
    """By inductor, whose parts of a tower are compiled once."""
    tiny = zoo.build(family, layers=2)
    fast = lightvlm.compile(tiny.model, "none")
    for text, images in (((9,), (2,)), ((9,), (1,)), ((12,), (3,))):
        inputs = tiny.inputs(text=text, images=images, seed=images[0])
        assert difference(answer(tiny.model, inputs), answer(fast, inputs)) <= NEAR
    assert len(fast.lightvlm.report.vision) == 1
    assert "vision: any pictures" in str(fast.lightvlm.report)
    assert "aten.linear" in fast.lightvlm.graph("vision")


def test_a_video_beside_pictures_runs_the_models_own_code():
    """Where get_video_features() asks get_image_features() for it, too; before or after pictures have a graph."""
    tiny = zoo.build("qwen3_vl", layers=2)
    features, report = stand_in(tiny)
    still = pictures(tiny, 2)
    frames = still | {"image_grid_thw": torch.tensor([[2, *still["image_grid_thw"][0, 1:].tolist()]])}
    with torch.no_grad():
        for given in (still, frames, still):
            own, ours = tiny.model.model.get_image_features(**given, return_dict=True), features(**given, return_dict=True)
            assert torch.allclose(torch.cat(ours.pooler_output), torch.cat(own.pooler_output), atol=1e-5)
    assert len(report.vision) == 1
    assert report.warnings == ["vision: the model's own code runs, uncompiled (a tower's graph is made for pictures, and this is a video)"]


def test_the_report_says_that_a_video_runs_the_models_own_code():
    tiny, inputs = zoo.build("qwen2_5_vl", layers=2), video(2 * math.prod(FRAME))
    fast = lightvlm.compile(tiny.model, "none", backend="aot_eager")
    assert difference(answer(tiny.model, inputs, 2), answer(fast, inputs, 2)) <= NEAR
    assert [line for line in fast.lightvlm.report.warnings if line.startswith("vision: the model's own code runs, uncompiled (a tower's")]
    fast.lightvlm.report.warnings.clear()
    answer(fast, tiny.inputs(text=(9,), images=(1,)), 2)
    assert not fast.lightvlm.report.warnings


@pytest.mark.full
def test_scores_by_tower_attention_come_from_the_graph():
    tiny = zoo.build("llava", layers=2)
    fast, eager = (lightvlm.compile(tiny.model, "visionzip", backend=backend) for backend in ("inductor", "eager"))
    for text, images in (((9,), (1,)), ((9, 6), (2, 1))):
        inputs = tiny.inputs(text=text, images=images)
        assert difference(answer(eager, inputs), answer(fast, inputs)) <= NEAR
    assert len(fast.lightvlm.report.vision) == 1
    assert not fast.lightvlm.report.warnings
