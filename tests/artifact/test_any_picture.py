"""Tier 5: one artifact of a family answers pictures of any size and number up to its bounds, as the compiled model does."""

from dataclasses import replace
from itertools import cycle

import pytest
import torch
from artifacts import check_same, manifest, once, with_picture

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import InputError
from lightvlm_fx.schedule import Cut, Schedule

NEW = 10
SCHEDULES = {
    "cut": Schedule.preset("lightvlm", keep=0.3, layers=(1,)),
    "cache": Schedule(cuts=(Cut(layer=1, keep=0.3, combine="merge", proportional=True),), kv=Schedule.preset("h2o", capacity=14).kv),
    "share": Schedule.preset("lightvlm", keep=0.5, layers=(1,), capacity=0.6, recent=2, sinks=1),
    "budgets": Schedule.preset("aircache", capacity=0.25),
}
PAIRS = [*((family, name) for family in ("llava", "qwen2_5_vl") for name in SCHEDULES), ("internvl", "cut"), ("smolvlm", "cache"),
         ("qwen2_vl", "budgets"), ("qwen3_vl", "cache"), ("llava_next", "budgets"), ("gemma3", "cut")]  # fmt: skip
BATCHES = {  # text tokens and pictures of each row
    "whole": {"text": (9, 9), "images": (2, 2)}, "one picture": {"text": (9, 9), "images": (1, 1), "seed": 3},
    "one row": {"text": (12,), "images": (2,), "seed": 4}, "ragged": {"text": (9, 6), "images": (1, 2), "seed": 5},
    "one without": {"text": (9, 7), "images": (0, 1), "seed": 6}, "short": {"text": (5,), "images": (1,), "seed": 7},
    "text": {"text": (8, 6), "images": (0, 0), "seed": 8}, "one row of text": {"text": (11,), "images": (0,), "seed": 9},
}  # fmt: skip
PATCHES = [(6, 8), (4, 4), (2, 6), (10, 4), (8, 6)]  # of pictures with a grid; the example's is 6 x 8
# LLaVA-NeXT: a picture's size, its tiles, lines of tokens that are no padding, and how long they are with their newline
TILES = [((48, 24), 3, 6, 4), ((24, 48), 3, 3, 7), ((30, 20), 3, 4, 4), ((10, 60), 3, 1, 7), ((24, 24), 3, 4, 4)]


def shaped(tiny):
    """The family with pictures of other sizes, the example's first."""
    if tiny.model_type.startswith("qwen"):
        return [with_picture(tiny, *shape) for shape in PATCHES]
    if tiny.model_type == "llava_next":
        made = [(zoo.span(9 + lines * length), zoo.tiles(tiles, 24, size)) for size, tiles, lines, length in TILES]
        return [replace(tiny, recipe=replace(tiny.recipe, span=span, picture=picture)) for span, picture in made]
    return [tiny]


@pytest.fixture(scope="module")
def compiled():
    """Of each family the model and the same compiled, captured once for all schedules."""
    made = {}

    def get(family):
        if family not in made:
            tiny = zoo.build(family, layers=2)
            made[family] = tiny, lightvlm.compile(tiny.model, "none", backend="eager")
        return made[family]

    return get


@pytest.fixture(scope="module")
def artifact(shelf, compiled):
    """The artifact of a family under a schedule: two rows of two pictures at most."""

    def get(family, name, **options):
        tiny, plain = compiled(family)
        inputs = tiny.inputs(text=(9, 9), images=(2, 2))

        def write(folder):
            length = inputs["input_ids"].shape[1] + 8
            lightvlm.export(tiny.model, SCHEDULES[name], folder, inputs=inputs, prompt_tokens=length, new_tokens=NEW, **options)

        folder = once(shelf, "-".join(["any", family, name, *options.values()]), write)
        return tiny, plain.lightvlm.with_schedule(SCHEDULES[name]), lightvlm.load(folder)

    return get


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_answers_as_the_compiled_model(artifact, family, name):
    tiny, fast, vlm = artifact(family, name)
    [bucket] = vlm.manifest["buckets"]
    assert bucket["vision"]["kind"] != "fixed", bucket["vision"]["why"]
    shapes = shaped(tiny)
    for batch, kind in zip(BATCHES.values(), cycle(shapes), strict=False):
        check_same(fast, vlm, kind.inputs(**batch), NEW)
    for kind in shapes:
        check_same(fast, vlm, kind.inputs(**BATCHES["ragged"]), NEW)


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl", "qwen3_vl", "llava_next"])
def test_static_targets_pad_a_picture(artifact, family):
    """The same graphs on ONNX Runtime: every shape known, slots of the vision stage left empty."""
    tiny, fast, vlm = artifact(family, "cut", target="tensorrt")
    for stage in vlm.manifest["buckets"][0]["stages"].values():
        assert all(isinstance(d, int) for value in stage["inputs"] + stage["outputs"] for d in value["shape"])
    for kind in shaped(tiny):
        for what in ("whole", "ragged", "short", "text"):
            check_same(fast, vlm, kind.inputs(**BATCHES[what]), NEW)


def test_masks_of_real_pixels(artifact):
    """SmolVLM pads pictures to squares: another mask is another picture."""
    tiny, fast, vlm = artifact("smolvlm", "cache")
    inputs = tiny.inputs(text=(9, 6), images=(1, 2), seed=5)
    whole = vlm.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW)
    for height, width in ((24, 64), (64, 20), (33, 50)):
        mask = torch.zeros_like(inputs["pixel_attention_mask"])
        mask[..., :height, :width] = True
        masked = inputs | {"pixel_attention_mask": mask}
        check_same(fast, vlm, masked, NEW)
    assert vlm.generate(**masked, max_new_tokens=NEW, min_new_tokens=NEW).tolist() != whole.tolist()


def test_names_its_bounds(artifact):
    tiny, _, vlm = artifact("qwen2_5_vl", "cache")
    said = "bucket 0 (2 rows of at most 21 tokens of text and 24 visual tokens in 4 pictures): "
    small = with_picture(tiny, 2, 2)
    for kind, batch, why in (
        (tiny, {"text": (9,), "images": (3,)}, "a row has 36 visual tokens"),
        (small, {"text": (12,), "images": (5,)}, "a row has 5 pictures"),
        (tiny, {"text": (30,), "images": (0,)}, "a row has 30 tokens of text"),
        (tiny, {"text": (9,) * 3, "images": (1,) * 3}, "the batch has 3 rows"),
    ):
        with pytest.raises(InputError) as error:
            vlm.generate(**kind.inputs(**batch), max_new_tokens=1)
        assert said in str(error.value)
        assert why in str(error.value)


def test_pictures_too_small_for_a_count_of_tokens(tmp_path):
    """keep=6 tokens means nothing for a picture of 4: the compiled model refuses it, and so does the artifact."""
    large = zoo.build("qwen2_5_vl", layers=2)
    schedule = Schedule(cuts=(Cut(layer=1, keep=6),))
    lightvlm.export(large.model, schedule, tmp_path / "out", inputs=large.inputs(text=(9,)), images=1, new_tokens=4)
    [bucket] = manifest(tmp_path / "out")["buckets"]
    assert (bucket["least_picture"], bucket["pictures"], bucket["tokens_per_layer"][1]) == (6, 1, bucket["text_tokens"] + 6)
    vlm = lightvlm.load(tmp_path / "out")
    fast = lightvlm.compile(large.model, schedule, backend="eager")
    check_same(fast, vlm, with_picture(large, 4, 6).inputs(text=(9,)), 4)
    with pytest.raises(InputError, match="a picture has 4 tokens, below the 6 that the schedule keeps"):
        vlm.generate(**with_picture(large, 4, 4).inputs(text=(9,)), max_new_tokens=1)
