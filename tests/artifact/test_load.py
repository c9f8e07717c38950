"""Tier 5: what a loaded artifact takes and gives: batches, buckets, kinds of arrays, streamers, options, refusals."""

import numpy as np
import pytest
import torch
from artifacts import BOUNDED, CUTS, LARGE, ROOM, SMALL, arrays, check_same, manifest, split, with_picture
from transformers import AutoTokenizer, TextStreamer

import lightvlm_fx as lightvlm
from lightvlm_fx import bundled, zoo
from lightvlm_fx.errors import InputError, NotSupported

NEW = 8


@pytest.fixture(scope="module")
def vlm(sizes):
    return lightvlm.load(sizes)


@pytest.fixture(scope="module")
def fast(sized):
    return lightvlm.compile(sized[LARGE].model, CUTS, backend="eager")


def bucket_of(vlm, inputs, new=NEW):
    return vlm.bucket(*split(inputs), new)


# --- batches and buckets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "sizes_of_batch", "bucket"), [
    (SMALL, {"text": (9,), "images": (1,)}, SMALL), (SMALL, {"text": (5,), "images": (1,), "seed": 3}, SMALL),
    (LARGE, {"text": (9,), "images": (1,), "seed": 3}, LARGE), (LARGE, {"text": (12, 6), "images": (1, 1), "seed": 5}, LARGE),
    (SMALL, {"text": (8,), "images": (0,), "seed": 6}, SMALL),  # text alone goes where it fits
    (SMALL, {"text": (25,), "images": (0,), "seed": 6}, LARGE), (SMALL, {"text": (8, 3), "images": (0, 0)}, LARGE),
], ids=["small", "shorter", "one row of two", "two rows", "text", "longer text", "two rows of text"])  # fmt: skip
def test_the_smallest_bucket_that_fits_answers_as_the_compiled_model(vlm, fast, sized, size, sizes_of_batch, bucket):
    inputs = sized[size].inputs(**sizes_of_batch)
    assert bucket_of(vlm, inputs) == bucket
    check_same(fast, vlm, inputs, NEW)


@pytest.mark.parametrize("images", [(1, 1), (0, 0)], ids=["pictures", "text"])
def test_a_batch_is_its_rows(vlm, sized, images):
    text = (9, 6)
    together = vlm.generate(**sized[LARGE].inputs(text=text, images=images), max_new_tokens=NEW, do_sample=False)
    for row in range(2):
        alone = sized[LARGE].inputs(text=text[row : row + 1], images=images[:1], seed=row)
        assert together[row, -NEW:].tolist() == vlm.generate(**alone, max_new_tokens=NEW, do_sample=False)[0, -NEW:].tolist()


def test_padding_of_the_caller_changes_nothing(vlm, sized):
    """Even where the padded rows are longer than the bucket."""
    inputs = sized[LARGE].inputs(text=(9,), images=(1,))
    wide = {k: torch.nn.functional.pad(inputs[k], (60, 0)) for k in ("input_ids", "attention_mask")}
    short, long = (vlm.generate(**inputs | more, max_new_tokens=NEW, do_sample=False) for more in ({}, wide))
    assert long.shape[1] == short.shape[1] + 60
    assert long[0, -NEW:].tolist() == short[0, -NEW:].tolist()


def test_buckets_share_one_weight_file(sizes):
    assert [f.name for f in sizes.iterdir() if f.suffix == ".data"] == ["model.onnx.data"]
    weights = sum(p.numel() * 4 for p in zoo.build("qwen2_5_vl", layers=2).model.parameters())
    assert (sizes / "model.onnx.data").stat().st_size < 1.5 * weights
    files = [stage["file"] for bucket in manifest(sizes)["buckets"] for stage in bucket["stages"].values()]
    assert len(files) == len(set(files)) == 8


def test_opens_only_the_buckets_it_needs(sizes, sized):
    vlm = lightvlm.load(sizes)
    assert not vlm._stages
    vlm.generate(**sized[SMALL].inputs(), max_new_tokens=1)
    assert list(vlm._stages) == [SMALL]


# --- refusals ---------------------------------------------------------------------------------------------


def test_says_which_buckets_there_are(vlm, sized):
    with pytest.raises(InputError) as error:
        vlm.generate(**sized[LARGE].inputs(text=(60,)), max_new_tokens=NEW)
    lines = str(error.value).splitlines()
    assert lines[0] == "no bucket of the artifact takes this batch:"
    assert lines[1].startswith("  bucket 0 (1 rows of at most 20 tokens of text and 4 visual tokens in 4 pictures): ")
    assert lines[2].startswith("  bucket 1 (2 rows of at most 28 tokens of text and 12 visual tokens in 4 pictures): ")
    assert lines[2].endswith("a row has 62 tokens of text")
    assert lines[3] == "export one with such an example"


def padded_on_the_right(inputs):
    return {k: torch.nn.functional.pad(v, (0, 2)) if k in ("input_ids", "attention_mask") else v for k, v in inputs.items()}


def without_picture(inputs):
    return {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}


def larger(inputs):
    return inputs | {"image_grid_thw": torch.tensor([[1, 12, 16]])}


def other(inputs):
    return inputs | {"pixel_values": inputs["pixel_values"][:16], "image_grid_thw": torch.tensor([[1, 4, 4]])}


def moving(inputs):
    return inputs | {"image_grid_thw": torch.tensor([[2, 6, 4]])}


def without_grid(inputs):
    return {k: v for k, v in inputs.items() if k != "image_grid_thw"}


@pytest.mark.parametrize(("sizes_of_batch", "change", "new", "message"), [
    ({"text": (9, 9, 9), "images": (1, 1, 1)}, dict, NEW, "the batch has 3 rows"),
    ({"text": (9,), "images": (2,)}, dict, NEW, "a row has 24 visual tokens"),
    ({"text": (9,), "images": (1,)}, without_picture, NEW, "holds placeholders for pictures, but no picture came with it"),
    ({"text": (9,), "images": (1,)}, padded_on_the_right, NEW, "the batch is padded on the right; pad on the left"),
    ({"text": (9,), "images": (1,)}, larger, NEW, r"pixel_values \[48, 384\] are not the patches \[192, 384\] of image_grid_thw"),
    ({"text": (9,), "images": (1,)}, other, NEW, "the pictures make 4 visual tokens, the prompt holds 12"),
    ({"text": (9,), "images": (1,)}, moving, NEW, r"takes still pictures, one frame each, got grids .* \[\[2, 6, 4\]\]"),
    ({"text": (9,), "images": (1,)}, without_grid, NEW, "pixel_values came without image_grid_thw"),
    ({"text": (9,), "images": (1,)}, dict, ROOM + 1, f"its caches have room for {ROOM} new tokens, {ROOM + 1} are wanted"),
    ({"text": (9,), "images": (1,)}, dict, 0, "max_new_tokens must be at least 1, got 0"),
], ids=["rows", "pictures", "no picture", "right", "grid", "other", "moving", "no grid", "room", "nothing"])  # fmt: skip
def test_refuses_what_no_bucket_takes(vlm, sized, sizes_of_batch, change, new, message):
    with pytest.raises(InputError, match=message):
        vlm.generate(**change(sized[LARGE].inputs(**sizes_of_batch)), max_new_tokens=new)


def test_refuses_a_larger_picture(vlm, sized):
    inputs = with_picture(sized[LARGE], 8, 8).inputs()
    with pytest.raises(InputError, match="a row has 16 visual tokens"):
        vlm.generate(**inputs, max_new_tokens=NEW)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 10), (8, 4), (4, 12)])
def test_answers_smaller_pictures_of_any_shape(vlm, fast, sized, height, width):
    kind = with_picture(sized[LARGE], height, width)
    check_same(fast, vlm, kind.inputs(text=(9, 6), images=(1, 0), seed=3), NEW)


def test_answers_up_to_the_room_there_is(vlm, fast, sized):
    check_same(fast, vlm, sized[LARGE].inputs(), ROOM)


def test_refuses_one_dimension_and_no_tokens(vlm):
    for ids in (np.arange(20, 30), np.zeros((1, 0), np.int64), np.zeros((0, 4), np.int64)):
        with pytest.raises(InputError, match="input_ids"):
            vlm.generate(ids, max_new_tokens=1)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"temprature": 0.5}, {"past_key_values": None}, {"typical_p": 0.5}])
def test_refuses_options_it_does_not_know(vlm, sized, options):
    with pytest.raises(NotSupported, match=next(iter(options))):
        vlm.generate(**sized[LARGE].inputs(), max_new_tokens=1, **options)


@pytest.mark.parametrize("options", [{"inputs_embeds": np.zeros((1, 9, 64), np.float32)}, {"pixel_value": np.zeros(3, np.float32)}])
def test_refuses_arrays_it_does_not_know(vlm, sized, options):
    with pytest.raises((InputError, NotSupported), match=next(iter(options))):
        vlm.generate(**sized[LARGE].inputs(), max_new_tokens=1, **options)


# --- kinds, streamers, options ----------------------------------------------------------------------------


def test_gives_back_the_kind_it_is_given(vlm, sized):
    inputs = sized[LARGE].inputs()
    tensor, array = (vlm.generate(**given, max_new_tokens=4) for given in (inputs, arrays(inputs)))
    assert type(tensor) is torch.Tensor
    assert type(array) is np.ndarray
    assert tensor.dtype == torch.int64
    assert array.dtype == np.int64
    assert tensor.tolist() == array.tolist()
    assert vlm.generate(inputs["input_ids"].tolist(), arrays(inputs)["attention_mask"], arrays(inputs)["pixel_values"],
                        image_grid_thw=inputs["image_grid_thw"].tolist(), max_new_tokens=4).tolist() == array.tolist()  # fmt: skip


def test_takes_pictures_in_half_precision(vlm, sized):
    inputs = sized[LARGE].inputs()
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    assert vlm.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2


def test_numpy_scalars_are_options(vlm, sized):
    inputs = sized[LARGE].inputs()
    plain = {"do_sample": True, "temperature": 3.0, "top_k": 0, "seed": 7}
    wrapped = {"do_sample": True, "temperature": np.float32(3.0), "top_k": np.int64(0), "seed": np.int64(7)}
    want, got = (vlm.generate(**inputs, max_new_tokens=NEW, **options).tolist() for options in (plain, wrapped))
    assert got == want


class Collect:
    def __init__(self):
        self.got = []

    def put(self, value):
        self.got.append(value.tolist())

    def end(self):
        self.got.append("end")


def test_a_streamer_sees_prompt_and_every_token(vlm, sized):
    inputs, streamer = sized[LARGE].inputs(text=(9, 6), images=(1, 1)), Collect()
    tokens = vlm.generate(**inputs, max_new_tokens=NEW, streamer=streamer)
    prompt = inputs["input_ids"].tolist()
    assert streamer.got == [prompt, *tokens[:, -NEW:].T.tolist(), "end"]


@pytest.mark.parametrize("skip_prompt", [True, False])
def test_transformers_own_streamer_prints_the_answer(vlm, sized, capsys, skip_prompt):
    tokenizer = AutoTokenizer.from_pretrained(bundled.HOME)
    inputs = sized[LARGE].inputs()
    tokens = vlm.generate(**inputs, max_new_tokens=NEW, streamer=TextStreamer(tokenizer, skip_prompt=skip_prompt))
    shown = tokens[0, inputs["input_ids"].shape[1] :] if skip_prompt else tokens[0]
    assert capsys.readouterr().out == tokenizer.decode(shown) + "\n"


def test_rows_end_at_the_end_token_and_are_filled(vlm, sized):
    inputs = sized[LARGE].inputs(text=(9, 6), images=(1, 1))
    whole = vlm.generate(**inputs, max_new_tokens=NEW)[:, -NEW:].tolist()
    end = whole[0][2]  # first row stops early, second where it says so too
    want = []
    for row in whole:
        at = row.index(end) + 1 if end in row else NEW
        want.append(row[:at] + [zoo.PAD] * (NEW - at))
    length = max(NEW - row[::-1].index(next(t for t in row[::-1] if t != zoo.PAD)) for row in want)
    got = vlm.generate(**inputs, max_new_tokens=NEW, eos_token_id=end)
    assert got[:, inputs["input_ids"].shape[1] :].tolist() == [row[:length] for row in want]


def test_no_end_token_before_the_least(vlm, sized):
    inputs = sized[LARGE].inputs()
    whole = vlm.generate(**inputs, max_new_tokens=NEW)[0, -NEW:].tolist()
    for ends in (whole[0], [whole[0], whole[1]]):
        assert vlm.generate(**inputs, max_new_tokens=NEW, eos_token_id=ends).shape[1] == inputs["input_ids"].shape[1] + 1
        longer = vlm.generate(**inputs, max_new_tokens=NEW, min_new_tokens=4, eos_token_id=ends)[0, inputs["input_ids"].shape[1] :]
        assert len(longer) >= 4
        assert not set(longer[:4].tolist()) & set(ends if isinstance(ends, list) else [ends])


def test_options_of_generation_equal_transformers(vlm, fast, sized):
    """Penalty, end tokens and least length together, as transformers' own loop does them."""
    inputs = sized[LARGE].inputs(text=(9, 6), images=(1, 1))
    flags = {"max_new_tokens": NEW, "min_new_tokens": 3, "repetition_penalty": 1.7, "eos_token_id": list(range(20, 60)), "do_sample": False}
    assert vlm.generate(**inputs, **flags).tolist() == fast.generate(**inputs, **flags).tolist()


def test_seeds_repeat(vlm, sized):
    flags = {"do_sample": True, "temperature": 4.0, "top_k": 0, "max_new_tokens": NEW}
    inputs = sized[LARGE].inputs()
    first, again, other = (vlm.generate(**inputs, **flags, seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_answers_do_not_depend_on_those_before(vlm, sized):
    inputs = [sized[LARGE].inputs(text=(9, 6), images=(1, 1)), sized[LARGE].inputs(seed=9)]
    first = [vlm.generate(**i, max_new_tokens=NEW).tolist() for i in inputs]
    assert [vlm.generate(**i, max_new_tokens=NEW).tolist() for i in inputs[::-1]] == first[::-1]


# --- the cache --------------------------------------------------------------------------------------------


def test_steps_write_into_the_buffers_they_read(bounded, tiny):
    """Nothing is copied: every buffer of the cache stays where the prompt put it, and changes there."""
    run = lightvlm.load(bounded).stages(0).start(*split(tiny.inputs(text=(9, 9), images=(1, 1))), zoo.PAD)
    places = {name: value.data_ptr() for name, value in run.cache.items()}
    before = {name: value.numpy().copy() for name, value in run.cache.items()}
    assert len(set(places.values())) == len(places)
    for token in range(30, 60):
        run.step(np.array([token, token]))
    assert {name: value.data_ptr() for name, value in run.cache.items()} == places
    for name, value in run.cache.items():
        if name.endswith((".key", ".value", ".position")):
            assert not np.array_equal(value.numpy(), before[name]), name


def test_two_answers_at_once_do_not_mix(bounded, tiny):
    """Caches belong to an answer, not to a session."""
    stages = lightvlm.load(bounded).stages(0)
    args = [(*split(tiny.inputs(text=(9, 9), images=(1, 1), seed=seed)), zoo.PAD) for seed in (0, 5)]

    def tokens(runs, steps=12):
        out = [[] for _ in runs]
        for _ in range(steps):
            for run, said in zip(runs, out, strict=True):
                token = run.logits.argmax(1)
                said.append(token.tolist())
                run.step(token)
        return out

    together = tokens([stages.start(*a) for a in args])
    assert together == [tokens([stages.start(*a)])[0] for a in args]


def test_a_row_may_be_shorter_than_what_the_cache_holds(bounded, tiny):
    """Five tokens of text in a cache of 20, and an answer that fills it."""
    fast = lightvlm.compile(tiny.model, BOUNDED, backend="eager")
    check_same(fast, lightvlm.load(bounded), tiny.inputs(text=(5,), images=(0,), seed=2), 24)


def test_mutes_its_own_sessions_and_leaves_onnx_runtimes_log_alone(monkeypatch):
    import onnxruntime

    from lightvlm_fx.artifact.stages import OnnxRuntime, default_options

    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", None)  # of the whole process
    OnnxRuntime("float32", ["CPUExecutionProvider"], None, prepack=False)
    assert default_options(onnxruntime, prepack=True, often=True).log_severity_level == 3
