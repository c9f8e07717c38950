"""What a vision tower attends to, against its own attention maps; and cuts by it, before the first decoder layer."""

from functools import cache

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.compat import attention_name
from lightvlm_fx.errors import NotSupported, PreconditionError, ScheduleError
from lightvlm_fx.model.locate import vision_tower
from lightvlm_fx.model.salience import NAME, Noted, noting, salience, watched
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.schedule import Cut, Schedule
from lightvlm_fx.support import ALL, answer, difference
from lightvlm_fx.testing import tiny_program

SALIENT = {"layer": 0, "score": "salience"}


@pytest.fixture(scope="module")
def llava():
    return zoo.build("llava", layers=3)


@cache
def plain(model):
    """Captured once for all cuts."""
    return lightvlm.compile(model, "none", backend="eager")


def compiled(model, **cut):
    return plain(model).lightvlm.with_schedule(Schedule(cuts=(Cut(**SALIENT | cut),)))


def test_a_summary_tokens_attention_is_the_towers_own(llava):
    tower = vision_tower(llava.model)
    pixels = llava.inputs(images=(2,))["pixel_values"]
    with torch.no_grad():
        with noting(tower) as noted:
            tower(pixels)
        assert tower.config._attn_implementation != NAME  # put back
        old = tower.config._attn_implementation
        tower.set_attn_implementation("eager")
        try:
            maps = tower(pixels, output_attentions=True).attentions[-1]  # [pictures, H, P, P]
        finally:
            tower.set_attn_implementation(old)
    patches = maps.shape[-1] - 1
    torch.testing.assert_close(salience(noted, 2 * patches), maps[:, :, 0, 1:].mean(1).flatten())


def test_without_a_summary_it_is_the_mean_that_a_patch_receives():
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 4, 6, 8, generator=draw) for _ in "qk")
    noted = Noted()
    noted.note(torch.nn.Identity(), q, k, 0.3)
    expected = (q @ k.transpose(2, 3) * 0.3).softmax(-1).mean((1, 2))
    torch.testing.assert_close(salience(noted, 12), expected.flatten())
    noted.merged = 2
    torch.testing.assert_close(salience(noted, 6), expected.view(6, 2).mean(1))  # two patches became one token


def test_only_the_layer_that_ran_last_counts():
    first, last = torch.nn.Identity(), torch.nn.Identity()
    q, noted = torch.randn(1, 2, 4, 8), Noted()
    for module in (first, last, last):  # a tower may attend picture by picture
        noted.note(module, q, q, 1.0)
    assert noted.module is last
    assert len(noted.calls) == 2


def chosen(fast):
    """Of the latest prompt, the places within each picture of the tokens that the cut kept, picture by picture."""
    index, segment = (fast.lightvlm.survivors[f"{what}.0"] for what in ("index", "segment"))
    pictures, out = fast.lightvlm.layout.segment, []
    for row, images in enumerate(fast.lightvlm.layout.images):
        for number in range(len(images)):
            first = int((pictures[row] == number).nonzero()[0])
            out.append((index[row][segment[row] == number] - first).tolist())
    return out


def most_salient(tiny, inputs, pictures, keep):
    """The places within each of so many pictures of the `keep` tokens that the source's own tower attends to most."""
    grid = inputs.get("image_grid_thw")
    with torch.no_grad(), noting(vision_tower(tiny.model), grid) as noted:
        tiny.model.get_image_features(inputs["pixel_values"], **({} if grid is None else {"image_grid_thw": grid}))
    n = tiny.visual_tokens
    return salience(noted, pictures * n).view(pictures, n).topk(keep).indices.sort(-1).values.tolist()


def test_keeps_the_tokens_that_the_tower_attends_to_most(llava):
    fast, inputs = compiled(llava.model, keep=5), llava.inputs(text=(7, 9), images=(2, 1))
    with torch.no_grad():
        fast(**inputs)
    assert chosen(fast) == most_salient(llava, inputs, 3, 5)
    assert fast.lightvlm.report.of("prefill")[0].tokens_per_layer[0] < inputs["input_ids"].shape[1]


@pytest.mark.compat
def test_every_token_kept_changes_nothing_and_the_source_stays_as_it_was(llava):
    inputs = llava.inputs(text=(7, 9), images=(1, 1))
    before = answer(llava.model, inputs, 4)
    assert difference(before, answer(compiled(llava.model, keep=ALL), inputs, 4)) <= 1e-5
    assert difference(before, answer(llava.model, inputs, 4)) == 0
    assert "get_image_features" not in llava.model.model.__dict__


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "paligemma"])
def test_reads_towers_without_a_summary(family):
    tiny = zoo.build(family, layers=3)
    fast, inputs = compiled(tiny.model, keep=3), tiny.inputs(text=(9,), images=(2,))
    cache = answer(fast, inputs, 2).past_key_values
    assert chosen(fast) == most_salient(tiny, inputs, 2, 3)
    left = inputs["input_ids"].shape[1] - 2 * (tiny.visual_tokens - 3) + 1
    assert [int((layer.table.position >= 0).sum()) for layer in cache.layers] == [left] * 3
    whole = compiled(tiny.model, keep=ALL)
    assert difference(answer(tiny.model, inputs, 2), answer(whole, inputs, 2)) <= 1e-4


def test_beams_read_the_picture_once(llava):
    """Each row stands twice, its picture was encoded once: both beams of a row keep what it keeps without beams."""
    fast, inputs = compiled(llava.model, keep=5), llava.inputs(text=(7, 9), images=(1, 1))
    assert fast.generate(**inputs, num_beams=2, max_new_tokens=3, do_sample=False).shape[0] == 2
    first, second = most_salient(llava, inputs, 2, 5)
    assert chosen(fast) == [first, first, second, second]


def test_a_video_beside_a_picture_of_as_many_tokens_has_scores_of_its_own():
    """Its row is no beam of the picture's."""
    tiny = zoo.build("qwen2_vl", layers=3)
    inputs, video = tiny.inputs(text=(9, 9), images=(1, 1)), tiny.model.config.video_token_id
    picture = inputs["input_ids"] == tiny.model.config.image_token_id
    picture[0] = False
    inputs["input_ids"][picture], inputs["mm_token_type_ids"][picture] = video, 2
    for of_pictures, of_videos in (("pixel_values", "pixel_values_videos"), ("image_grid_thw", "video_grid_thw")):
        inputs[of_pictures], inputs[of_videos] = inputs[of_pictures].chunk(2)
    fast, pictures = compiled(tiny.model, keep=0.5), tiny.inputs(text=(9, 9), images=(1, 1))
    answer(fast, inputs, 1)
    found = fast.lightvlm.survivors["index.0"]
    answer(fast, pictures, 1)
    assert found.equal(fast.lightvlm.survivors["index.0"])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_in_a_video_the_tower_attends_to_each_frame_as_to_a_picture(family):
    tiny, told, frames = zoo.build(family, layers=2), [], 3
    holder, tower = tiny.model.model, vision_tower(tiny.model)
    side = 2 * tower.spatial_merge_size
    patches = torch.randn(frames * side**2, tiny.inputs(images=(1,))["pixel_values"].shape[1], generator=torch.Generator().manual_seed(0))
    watched(tower, holder, told.append, "video")(patches, torch.tensor([[frames, side, side]]))
    watched(tower, holder, told.append)(patches, torch.tensor([[1, side, side]] * frames))
    video, pictures = (salience(noted, frames * 4) for noted in told)
    torch.testing.assert_close(video, pictures)
    assert len(set(pictures.tolist())) == frames * 4


def test_refuses_a_tower_whose_patches_are_not_its_tokens():
    tiny = zoo.build("internvl", layers=3)
    with pytest.raises(NotSupported, match=r"a score by tower attention needs to know .* patches became .* tokens .* with score 'density'"):
        answer(compiled(tiny.model, keep=0.5), tiny.inputs(text=(9,), images=(1,)), 2)


@pytest.mark.parametrize(("what", "name"), [("score", "salience"), ("combine", "neighbours")])
def test_refuses_a_later_cut_that_reads_the_tower(what, name):
    said = f"only the first cut can use {what} '{name}'"
    with pytest.raises(ScheduleError, match=said):
        Schedule(cuts=(Cut(layer=1, keep=0.5), Cut(layer=2, keep=0.4, **{what: name})))
    program = tiny_program("prefill", layers=3)
    cuts = [ReduceTokens(layer=1), ReduceTokens(layer=2, **{what: name})]
    with pytest.raises(PreconditionError, match=said):
        Pipeline(cuts).run(program)


def test_the_source_attends_as_ever_while_its_tower_is_watched(llava):
    """Another thread may run it meanwhile: what notes is a copy."""
    tower, seen = vision_tower(llava.model), []
    before = attention_name(tower)
    hook = tower.register_forward_hook(lambda module, args, out: seen.append((attention_name(module), attention_name(tower))))
    try:
        answer(compiled(llava.model, keep=5), llava.inputs(images=(1,)), 1)
    finally:
        hook.remove()
    assert seen == [(NAME, before)]


def test_a_source_that_never_ran_gets_no_hooks():
    """transformers hooks a tower when it is first asked for hidden states, as LLaVA asks: here the copy, at every prompt."""
    tiny = zoo.build("llava", layers=3)
    inputs = tiny.inputs(images=(1,))
    hooks = [module._forward_hooks for module in vision_tower(tiny.model).modules()]
    fast = compiled(tiny.model, keep=ALL)
    answers = [answer(fast, inputs, 2) for _ in range(2)]
    assert not any(hooks)
    assert [difference(answer(tiny.model, inputs, 2), one) <= 1e-5 for one in answers] == [True, True]
