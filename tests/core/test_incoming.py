"""What a call brings is read whichever way it comes, and what does not fit is named as what it is."""

import pytest
import torch
from torch import nn

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import CaptureError, InputError, NotSupported, ScheduleError
from lightvlm_fx.schedule import Cut
from lightvlm_fx.support import answer, difference

QUICK = {"max_new_tokens": 2, "do_sample": False}


@pytest.fixture(scope="module")
def tiny():
    return zoo.build("llava", layers=3)


@pytest.fixture(scope="module")
def inputs(tiny):
    return tiny.inputs(text=(9,), images=(1,))


@pytest.fixture(scope="module")
def fast(tiny):
    return lightvlm.compile(tiny.model, lightvlm.Schedule.preset("fastv", layer=1, keep=9), backend="eager")


@pytest.fixture(scope="module")
def qwen():
    return zoo.build("qwen2_vl", layers=3)


@pytest.fixture(scope="module")
def video(qwen):
    """The inputs of a prompt with a video of one frame."""
    out = qwen.inputs(text=(9,), images=(1,))
    out |= {"pixel_values_videos": out.pop("pixel_values"), "video_grid_thw": out.pop("image_grid_thw")}
    ids = out["input_ids"]
    return out | {"input_ids": ids.where(ids != zoo.IMAGE, zoo.VIDEO), "mm_token_type_ids": 2 * out["mm_token_type_ids"]}


def test_takes_arguments_by_position(fast, inputs):
    with torch.no_grad():
        wanted = fast(**inputs).logits
        assert fast(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).logits.equal(wanted)
        with pytest.raises(InputError, match="36 placeholder tokens for pictures, but no picture came with it"):
            fast(inputs["input_ids"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("call", ["generate", "forward"])
def test_refuses_pixels_that_are_not_finite(fast, inputs, bad, call):
    pixels = inputs["pixel_values"].clone()
    pixels[0, 1, 5, 5] = bad
    with torch.no_grad(), pytest.raises(InputError, match=r"holds \d+ numbers that are not finite \(NaN or infinite\) of .* look at"):
        fast.generate(**inputs | {"pixel_values": pixels}, **QUICK) if call == "generate" else fast(**inputs | {"pixel_values": pixels})


def test_a_later_turn_says_that_the_cache_holds_the_old_pictures(fast, inputs):
    with torch.no_grad():
        cache = fast(**inputs, use_cache=True).past_key_values
        more = torch.tensor([[30, 31, 32]])
        with pytest.raises(InputError, match=r"past_key_values holds the earlier turns .* pass the pictures of the new turn alone"):
            fast(input_ids=more, pixel_values=inputs["pixel_values"], past_key_values=cache)


def test_salience_says_that_a_video_was_not_watched(qwen, video):
    fast = lightvlm.compile(qwen.model, lightvlm.Schedule.preset("sparsevila"), backend="eager")
    fast.generate(**video, **QUICK)
    vars(fast.model).pop("get_video_features")  # as where features come from elsewhere
    with pytest.raises(NotSupported, match=r"get_video_features\(\), which did not run; pass videos as pixels, or use .*'density'"):
        fast.generate(**video, **QUICK)


def test_an_export_says_that_it_takes_no_video(qwen, video, tmp_path):
    both = qwen.inputs(text=(9,), images=(1,)) | {"pixel_values_videos": video["pixel_values_videos"]}
    for batch in (video, both):
        with pytest.raises(InputError, match=r"holds a video \(pixel_values_videos.*\); an artifact takes still pictures"):
            lightvlm.export(qwen.model, lightvlm.Schedule.preset("fastv", layer=1), tmp_path / "out", inputs=batch)


def test_a_count_too_high_says_that_a_tile_is_an_image():
    with pytest.raises(ScheduleError, match=r"above the 16 visual tokens of an image; use a smaller .*each tile of a model"):
        Cut(layer=1, keep=17).tokens(16)


@pytest.mark.filterwarnings("ignore")
def test_compiled_once_more_by_torch_it_answers_the_same(tiny, inputs):
    schedule = lightvlm.Schedule.preset("fastv", layer=1, keep=9)
    again, wrapped = (lightvlm.compile(tiny.model, schedule, backend="eager") for _ in range(2))
    wanted = answer(again, inputs)
    again.compile(backend="eager")
    wrapped.forward = torch.compile(wrapped.forward, backend="eager")
    for model in (again, wrapped):
        assert difference(wanted, answer(model, inputs)) == 0


class Linear4bit(nn.Linear):
    """As bitsandbytes': a trace of it ends in an error without words."""

    def forward(self, x):
        raise NotImplementedError


Linear4bit.__module__ = "bitsandbytes.nn.modules"


def test_a_quantiser_that_cannot_be_traced_is_named(inputs):
    model = zoo.build("llava", layers=2).model
    head = model.get_decoder().layers[1].mlp
    head.down_proj = Linear4bit(96, 64, bias=False)
    fast = lightvlm.compile(model, "none", backend="eager")
    with pytest.raises(CaptureError, match=r"its linear layers are bitsandbytes's Linear4bit \(NotImpl.*call model.dequantize\(\)"):
        fast.generate(**inputs, **QUICK)


def test_an_error_without_words_is_named_by_its_type(inputs):
    model = zoo.build("llava", layers=2).model

    def fails(*args, **kwargs):
        raise NotImplementedError

    object.__setattr__(model.get_decoder().layers[1].mlp, "forward", fails)
    with pytest.raises(CaptureError, match=r"could not trace LlamaModel .*: NotImplementedError in modeling_llama\.py:\d+"):
        lightvlm.compile(model, "none", backend="eager").generate(**inputs, **QUICK)
