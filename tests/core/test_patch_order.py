"""Towers whose patches stand in another order than their tokens: salience against which patches reach which token, by gradients."""

from functools import cache

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import NotSupported
from lightvlm_fx.model.families.patch_order import ROW_BY_ROW, merge_side, patch_order, whole_picture_layers
from lightvlm_fx.model.locate import vision_tower
from lightvlm_fx.model.salience import salience, watched
from lightvlm_fx.schedule import Cut, Schedule
from lightvlm_fx.support import ALL, answer, difference

PLAIN = "plain_attention_of_a_test"
KNOWN = zoo.image_text_to_text_types()  # an older transformers knows fewer
WINDOWED = ["qwen2_5_vl", "exaone4_5", "qwen2_5_omni_thinker", "muse_glimmer"]
WINDOWED += [family for family in ("hyperclovax_vision_v2", "muse_spark") if family in KNOWN]
OTHERS = ["paddleocr_vl", "qwen2_vl", "glm4v", "minimax_m3_vl"]
GRID = torch.tensor([[1, 6, 8], [1, 10, 4], [1, 4, 6]])
seen = []


def _attend(module, q, k, v, attention_mask=None, scaling=None, **options):
    assert attention_mask is None
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    weights = (q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)).softmax(-1)
    out = (weights @ v).transpose(1, 2).clone()  # [n, P, H, d]
    seen.append((module, weights.detach(), out))
    return out, weights


AttentionInterface.register(PLAIN, _attend)
AttentionMaskInterface.register(PLAIN, sdpa_mask)


@pytest.fixture(scope="module", params=[*WINDOWED, *OTHERS])
def tiny(request):
    built = zoo.build(request.param, layers=2)
    tower = vision_tower(built.model)
    if request.param.startswith("muse"):
        tower.window_size = 3 * tower.patch_size  # its windows know nothing of the squares that are merged
    return built


def pictures(tiny, grid=GRID):
    """Patches of `grid`, as the model's processor hands them over."""
    one = tiny.inputs(images=(1,))["pixel_values"]
    pixels = torch.randn(int(grid.prod(1).sum()), *one.shape[1:], generator=torch.Generator().manual_seed(3))
    return {"pixel_values": pixels, "image_grid_thw": grid}


def holder(model):
    """The module that encodes pictures, as the decoder's parent does."""
    return model.model if hasattr(model.model, "get_image_features") else model


def features(model, given):
    out = holder(model).get_image_features(**given, return_dict=True)
    out = getattr(out, "pooler_output", out)
    return torch.cat(list(out)) if isinstance(out, list | tuple) else out


def by_gradients(model, given):
    """Mean attention that reaches each token's patches; a token's are those whose attention output its features depend on."""
    tower = vision_tower(model)
    old = tower.config._attn_implementation
    tower.set_attn_implementation(PLAIN)
    seen.clear()
    try:
        tokens = features(model, given)
    finally:
        tower.set_attn_implementation(old)
    last = [(weights, out) for module, weights, out in seen if module is seen[-1][0]]
    received = torch.cat([weights.mean((1, 2)).flatten() for weights, _ in last])
    direction = torch.randn(tokens.shape[1], generator=torch.Generator().manual_seed(5))
    wanted = []
    for token in tokens @ direction:
        by = torch.autograd.grad(token, [out for _, out in last], retain_graph=True)
        reaches = torch.cat([g.abs().sum((2, 3)).flatten() for g in by]) > 0
        assert reaches.sum() == merge_side(tower) ** 2
        wanted.append(received[reaches].mean())
    return torch.stack(wanted)


def by_watching(model, given):
    """What the package makes of the same pictures."""
    told = []
    with torch.no_grad():
        watched(vision_tower(model), holder(model), told.append)(**given)
    return salience(told[0], int(given["image_grid_thw"].prod(1).sum()) // merge_side(vision_tower(model)) ** 2)


def test_a_tokens_salience_is_that_of_the_patches_it_is_made_of(tiny):
    given = pictures(tiny)
    wanted = by_gradients(tiny.model, given)
    assert wanted.std() > 1e-4  # so that another order would show
    torch.testing.assert_close(by_watching(tiny.model, given), wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", WINDOWED)
def test_windows_are_in_another_order_than_tokens(family):
    """Else the test above would pass without an order."""
    tower = vision_tower(zoo.build(family, layers=1).model)
    if family.startswith("muse"):
        tower.window_size = 3 * tower.patch_size
    order = patch_order(tower, GRID)
    assert sorted(order.tolist()) == list(range(int(GRID.prod(1).sum())))
    assert order.tolist() != sorted(order.tolist())


def test_patches_in_the_order_of_their_tokens_need_none():
    assert patch_order(vision_tower(zoo.build("qwen2_vl", layers=1).model), GRID) is None


@pytest.fixture(scope="module")
def qwen():
    return zoo.build("qwen2_5_vl", layers=3)


@cache
def plain(model):
    """Captured once for all cuts."""
    return lightvlm.compile(model, "none", backend="eager")


def compiled(model, **cut):
    return plain(model).lightvlm.with_schedule(Schedule(cuts=(Cut(**{"layer": 0, "score": "salience"} | cut),)))


def turned(inputs):
    """The same batch, every second picture of another shape with as many tokens."""
    inputs["image_grid_thw"][1::2] = inputs["image_grid_thw"][1::2][:, [0, 2, 1]]
    return inputs


@pytest.mark.compat
def test_keeps_the_tokens_that_a_tower_with_windows_attends_to_most(qwen):
    inputs, n = turned(qwen.inputs(text=(7, 9), images=(2, 1))), qwen.visual_tokens
    fast = compiled(qwen.model, keep=5)
    with torch.no_grad():
        fast(**inputs)
    wanted = by_gradients(qwen.model, {name: inputs[name] for name in ("pixel_values", "image_grid_thw")})
    wanted = wanted.view(3, n).topk(5).indices.sort(-1).values
    index, segment = (fast.lightvlm.survivors[f"{what}.0"] for what in ("index", "segment"))
    got = []
    for row, images in enumerate(fast.lightvlm.layout.images):
        for number in range(len(images)):
            first = int((fast.lightvlm.layout.segment[row] == number).nonzero()[0])
            got.append((index[row][segment[row] == number] - first).tolist())
    assert got == wanted.tolist()


def test_beams_score_as_their_row_does(qwen):
    inputs = turned(qwen.inputs(text=(7, 9), images=(1, 1)))
    fast = compiled(qwen.model, keep=5)
    fast.generate(**inputs, max_new_tokens=1)
    alone = fast.lightvlm.survivors["index.0"]
    fast.generate(**inputs, num_beams=2, max_new_tokens=2, do_sample=False)
    assert torch.equal(fast.lightvlm.survivors["index.0"], alone.repeat_interleave(2, 0))


def test_sparsevila_answers_as_the_model_where_all_stays(qwen):
    inputs = turned(qwen.inputs(text=(7, 9), images=(2, 1)))
    whole = plain(qwen.model).lightvlm.with_schedule(Schedule.preset("sparsevila", keep=ALL, capacity=1.0))
    assert difference(answer(qwen.model, inputs, 4), answer(whole, inputs, 4)) <= 1e-4
    less = plain(qwen.model).lightvlm.with_schedule("sparsevila")
    assert answer(less, inputs, 4).sequences.shape[0] == 2


def test_where_the_last_layer_has_windows_the_last_before_it_without_counts(qwen):
    """Attention within windows of different sizes cannot be compared."""
    tower, given = vision_tower(qwen.model), pictures(qwen)
    tower.fullatt_block_indexes = tower.config.fullatt_block_indexes = [0]
    try:
        got = by_watching(qwen.model, given)
        order = patch_order(tower, GRID)
        tower.set_attn_implementation(PLAIN)
        seen.clear()
        features(qwen.model, given)
    finally:
        tower.set_attn_implementation("sdpa")
        tower.fullatt_block_indexes = tower.config.fullatt_block_indexes = [1]
    first = [weights for module, weights, _ in seen if module is seen[0][0]]
    assert [weights.shape[-1] for weights in first] == GRID.prod(1).tolist()
    assert len(seen) > 2 * len(first)  # the second layer's windows
    wanted = torch.cat([weights.mean((1, 2)).flatten() for weights in first])[order].view(-1, 4).mean(1)
    torch.testing.assert_close(got, wanted)


def test_refuses_a_tower_that_attends_within_windows_only(qwen):
    tower = vision_tower(qwen.model)
    tower.config.fullatt_block_indexes = []
    try:
        with pytest.raises(NotSupported, match=r"over a whole picture, but every layer .* \(qwen2_5_vl_vision\) attends within windows"):
            compiled(qwen.model, keep=5)
    finally:
        tower.config.fullatt_block_indexes = [1]


def test_refuses_pictures_without_their_grid(qwen):
    with pytest.raises(NotSupported, match=r"needs the image_grid_thw of the pictures .* called without it; pass everything"):
        watched(vision_tower(qwen.model), qwen.model.model, print)(torch.zeros(4, 4))


@pytest.mark.parametrize("family", ["got_ocr2", "pp_chart2table"])
def test_refuses_a_tower_whose_attention_cannot_be_seen(family):
    tiny = zoo.build(family, layers=3)
    with pytest.raises(NotSupported, match="this vision tower does not attend through transformers' AttentionInterface"):
        answer(compiled(tiny.model, keep=0.5), tiny.inputs(text=(9,), images=(1,)), 2)


def test_row_by_row_towers_are_of_the_zoo():
    """An entry that no model of the zoo has would be untested."""
    families = [family for family in ("paddleocr_vl", "muse_glimmer", "muse_spark") if family in KNOWN]
    types = {vision_tower(zoo.build(name, layers=1).model).config.model_type for name in families}
    assert types == {kind for kind in ROW_BY_ROW if kind.removesuffix("_vision") in KNOWN}
    assert whole_picture_layers(vision_tower(zoo.build("muse_glimmer", layers=1).model)) == {1}
