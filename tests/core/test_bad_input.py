"""Bad input gets one clear error, and nothing changes: neither the source model nor the compiled one."""

import pytest
import torch
from transformers import Cache, DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import (
    CaptureError,
    InputError,
    NotSupported,
    RefusedModel,
    ScheduleError,
    UnknownName,
)
from lightvlm_fx.pictures import open_picture
from lightvlm_fx.schedule import Cut, Schedule

SCHEDULE = Schedule.preset("fastv", layer=1, keep=9)
MISFIT = "the pictures do not fit the placeholders of the prompt: one placeholder a picture in the text"


def compiled(model, schedule=SCHEDULE):
    return lightvlm.compile(model, schedule, backend="eager")


def state(model):
    """What a refusal must not change: config, attention, mode, hooks and attributes of every module."""
    return {
        name: (
            m.config.to_dict() if hasattr(m, "config") else None,
            getattr(getattr(m, "config", None), "_attn_implementation", None),
            m.training,
            len(m._forward_pre_hooks),
            sorted(m.__dict__),
        )
        for name, m in model.named_modules()
    }


@pytest.fixture(scope="module")
def inputs(llava):
    return llava.inputs(text=(7,), images=(1,))


@pytest.fixture(scope="module")
def answer(inputs):
    """Greedy tokens of a model, and its first logits."""

    def call(model):
        out = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return out.sequences.tolist(), out.logits[0]

    return call


@pytest.fixture(scope="module")
def shared(llava, answer):
    """One compiled model for all refusals, what it and its source said at first, and the source's state."""
    full = answer(llava.model)
    before = state(llava.model)  # after the first answer: transformers adds hooks of its own there
    fast = compiled(llava.model)
    return fast, answer(fast), full, before


@pytest.fixture
def fast(shared):
    return shared[0]


@pytest.fixture(autouse=True)
def nothing_changes(shared, llava, answer):
    yield
    fast, reduced, full, before = shared
    assert state(llava.model) == before
    for model, (tokens, logits) in ((llava.model, full), (fast, reduced)):
        now_tokens, now_logits = answer(model)
        assert now_tokens == tokens
        assert now_logits.equal(logits)


def test_compiling_and_answering_changes_nothing(fast, llava, answer):
    """The check of every test here, on a run that is not refused; and the schedule does change the answer."""
    assert type(fast) is type(llava.model)
    assert not answer(fast)[1].equal(answer(llava.model)[1])


# --- models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("florence2", "it is an encoder-decoder; its decoder has no visual tokens in its own sequence"),
        ("t5gemma2", "it is an encoder-decoder"),
        ("mllama", "its decoder reads the picture by cross-attention, not as tokens of its sequence"),
        (
            "qwen3_5",
            r"its decoder has layers with recurrent state \(linear_attention\), which no cut may cross",
        ),
        ("lfm2_vl", r"its decoder has layers with recurrent state \(conv\), which no cut may cross"),
        ("llama4", "its decoder uses chunked attention, whose chunks would shift when tokens leave"),
        (
            "kosmos-2",
            "its config names no image or video placeholder token, so it has no visual tokens to reduce",
        ),
        ("blip-2", "its decoder keeps no list `layers` of decoder layers"),
    ],
)
def test_refuses_a_family_and_says_why(family, reason):
    model = zoo.build(family).model
    before = state(model)
    for verb in (compiled, lambda m: lightvlm.explain(m, SCHEDULE)):
        with pytest.raises(
            RefusedModel, match=rf"{type(model).__name__} \({family}\) cannot be compiled: {reason}"
        ):
            verb(model)
    assert state(model) == before


def test_refuses_a_model_without_visual_tokens():
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    with pytest.raises(
        RefusedModel, match=r"LlamaForCausalLM \(llama\) cannot be compiled: its config names no image"
    ):
        compiled(LlamaForCausalLM(config))


@pytest.mark.parametrize("pick", [lambda m: m.model, lambda m: "llava-hf/llava-1.5-7b-hf", lambda m: None])
def test_refuses_what_cannot_generate(llava, pick):
    with pytest.raises(
        RefusedModel, match=r"has no generate\(\); pass the ...ForConditionalGeneration model"
    ):
        compiled(pick(llava.model))


def test_refuses_a_model_that_is_compiled_already(fast):
    with pytest.raises(NotSupported, match=r"compiled already; for another schedule call its \.lightvlm\.with_schedule"):
        compiled(fast)


def broken(layer_forward):
    """A tiny model of two layers, the first of which runs `layer_forward`."""
    tiny = zoo.build("llava", layers=2)
    object.__setattr__(tiny.model.get_decoder().layers[0], "forward", layer_forward)
    return tiny.model


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (lambda x, **k: x if bool(x.sum() > 0) else -x, CaptureError,
         r"LlamaModel \(prefill, step 1 of 3: capture\): .* branches on values, which a graph cannot follow"),
        (lambda x, **k: x, RefusedModel,
         r"LlamaModel: expected one attention through transformers' .*, found none in layers \[0\]"),
    ],
    ids=["untraceable", "no-attention"],
)  # fmt: skip
def test_refuses_a_decoder_that_cannot_be_captured(inputs, answer, layer, error, message):
    model = broken(layer)
    fast = compiled(model, "none")
    with torch.no_grad():
        model(**inputs)
        before = state(model)
        with pytest.raises(error, match=message):
            fast(**inputs)
    assert state(model) == before


# --- schedules that do not fit the model or the batch -----------------------------------------------------


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut(layer=4, keep=0.5), r"cut before layer 4: the decoder has 4 layers \(0 to 3\)"),
        (
            Cut(layer=0, keep=0.5),
            "cut before layer 0: score 'last-query' reads the attention of the layer before",
        ),
    ],
)
def test_refuses_a_schedule_that_does_not_fit_the_model(llava, cut, message):
    for verb in (compiled, lightvlm.explain):
        with pytest.raises(ScheduleError, match=message):
            verb(llava.model, Schedule(cuts=[cut]))


def test_refuses_a_keep_above_the_tokens_that_arrive(llava, inputs):
    fast = compiled(llava.model, Schedule.preset("fastv", layer=1, keep=64))
    with pytest.raises(
        ScheduleError, match="keep=64 is above the 36 visual tokens of an image; use a smaller count"
    ):
        fast.generate(**inputs, max_new_tokens=1)
    with pytest.raises(ScheduleError, match="keep=64 is above the 36 visual tokens"):
        fast.lightvlm.explain(inputs)


def test_refuses_an_unknown_preset(llava):
    with pytest.raises(UnknownName, match="no preset named 'lightvml'; did you mean 'lightvlm'"):
        compiled(llava.model, "lightvml")


def test_refuses_what_is_no_schedule(llava):
    with pytest.raises(ScheduleError, match="expected a Schedule, a preset's name or the path of a schedule file, got 3"):
        compiled(llava.model, 3)


def test_refuses_an_unknown_backend_at_once(llava):
    with pytest.raises(UnknownName, match="no backend named 'inducter'; did you mean 'inductor'"):
        lightvlm.compile(llava.model, SCHEDULE, backend="inducter")


def test_refuses_an_unreadable_schedule_file(llava, tmp_path):
    with pytest.raises(ScheduleError, match=r"missing\.toml: not a readable schedule file"):
        compiled(llava.model, tmp_path / "missing.toml")
    with pytest.raises(ScheduleError, match=r"missing\.toml: not a readable schedule file"):
        compiled(llava.model, str(tmp_path / "missing.toml"))


# --- batches ---------------------------------------------------------------------------------------------


def test_refuses_more_pictures_than_placeholders(fast, inputs):
    twice = {**inputs, "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1)}
    with pytest.raises(InputError, match=MISFIT + r".*transformers says: .*tokens: 36"):
        fast.generate(**twice, max_new_tokens=1)


def test_refuses_more_placeholders_than_pictures(fast, llava, inputs):
    two = {**llava.inputs(text=(7,), images=(2,)), "pixel_values": inputs["pixel_values"]}
    with pytest.raises(InputError, match=MISFIT + r".*transformers says: .*tokens: 72"):
        fast.generate(**two, max_new_tokens=1)


def test_refuses_a_picture_without_placeholders(fast, inputs):
    ids = torch.full((1, 8), 30)
    with pytest.raises(InputError, match=MISFIT + r".*transformers says: .*tokens: 0"):
        fast.generate(input_ids=ids, pixel_values=inputs["pixel_values"], max_new_tokens=1)


def test_refuses_placeholders_without_a_picture(fast, inputs):
    """Which transformers itself answers, from the embedding of the placeholder."""
    ids = inputs["input_ids"]
    with pytest.raises(
        InputError,
        match="the prompt holds 36 placeholder tokens for pictures, but no picture came with it; pass",
    ):
        fast.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)


def test_takes_a_prompt_of_text_alone(fast, llava):
    text = llava.inputs(text=(9,), images=(0,))
    both = [m.generate(**text, max_new_tokens=3, do_sample=False).tolist() for m in (fast, llava.model)]
    assert both[0] == both[1]


def test_refuses_padding_on_the_right(fast, inputs):
    ids, mask = (torch.nn.functional.pad(inputs[key], (0, 2)) for key in ("input_ids", "attention_mask"))
    with pytest.raises(InputError, match=r"rows \[0\] of the batch are padded on the right; pad on the left"):
        fast.generate(
            input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"], max_new_tokens=1
        )


def test_refuses_embeddings_without_ids(fast):
    with pytest.raises(
        InputError, match="input_ids are needed to find the visual tokens; pass input_ids instead"
    ):
        fast.generate(inputs_embeds=torch.randn(1, 8, 64), max_new_tokens=1)


def test_refuses_a_batch_beyond_frozen_buckets(fast, llava, inputs):
    known = len(fast.lightvlm.report.buckets)
    fast.lightvlm.warm_up(inputs, freeze=True)
    try:
        with pytest.raises(InputError) as error:
            fast.generate(**llava.inputs(text=(7, 11), images=(1, 1)), max_new_tokens=1)
        message = str(error.value)
        assert message.startswith(
            "this batch (2 rows, 47 tokens, images of ((36,), (36,)) tokens) exceeds the buckets"
        )
        assert "\n  prefill: 1 rows x 43 tokens\n" in message
        assert message.endswith(
            "call fast.lightvlm.warm_up(inputs) with such a batch before freezing, or fast.lightvlm.thaw()"
        )
        assert len(fast.lightvlm.report.buckets) == known
    finally:
        fast.lightvlm.thaw()


def test_refuses_a_graph_that_is_not_there(llava, fast):
    for handle, stage in ((fast.lightvlm, "vision"), (compiled(llava.model).lightvlm, "prefill")):
        with pytest.raises(
            InputError, match=rf"no {stage} graph yet: call warm_up\(inputs\) or generate\(\) first"
        ):
            handle.graph(stage)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_refuses_a_file_that_is_no_picture(tmp_path, content):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}: not a picture that Pillow can read"):
        open_picture(path)


def test_refuses_a_picture_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"missing\.png: no such file; give the path of a picture"):
        open_picture(tmp_path / "missing.png")


# --- training --------------------------------------------------------------------------------------------


def test_refuses_a_source_in_training_mode(fast, llava, inputs):
    llava.model.train()
    try:
        with pytest.raises(
            NotSupported, match=r"the model is in training mode; .* inference only: call .eval\(\) first"
        ):
            fast.generate(**inputs, max_new_tokens=1)
    finally:
        llava.model.eval()


def test_refuses_to_be_trained(fast):
    with pytest.raises(NotSupported, match="a compiled model runs inference only: train the source model"):
        fast.train()
    assert fast.eval() is fast


def test_refuses_labels(fast, inputs):
    with (
        torch.no_grad(),
        pytest.raises(NotSupported, match=r"labels ask for a training loss, .* train the source model"),
    ):
        fast(**inputs, labels=inputs["input_ids"])


def test_refuses_to_give_a_gradient(fast, inputs):
    with pytest.raises(
        NotSupported,
        match=r"a gradient is wanted, .* call it under torch.inference_mode\(\) or torch.no_grad\(\)",
    ):
        fast(**inputs)


# --- caches, and what a compiled graph does not keep -------------------------------------------------------


def test_refuses_a_cache_that_the_source_wrote(fast, llava, inputs):
    cache = DynamicCache()
    with torch.no_grad():
        llava.model(**inputs, past_key_values=cache)
        with pytest.raises(
            InputError, match="past_key_values holds tokens that another model wrote; start without it"
        ):
            fast(input_ids=torch.tensor([[30]]), past_key_values=cache)


def test_refuses_a_cache_of_another_compiled_model(fast, llava, inputs):
    with torch.no_grad():
        cache = compiled(llava.model)(**inputs, use_cache=True).past_key_values
        with pytest.raises(InputError, match="made by another compiled model or schedule; start without it"):
            fast(input_ids=torch.tensor([[30]]), past_key_values=cache)


def test_the_source_refuses_a_compiled_cache(fast, llava, inputs):
    with torch.no_grad():
        cache = fast(**inputs, use_cache=True).past_key_values
        with pytest.raises(
            NotSupported, match=r"this cache belongs to a compiled model .*; give the source model a new one"
        ):
            llava.model(input_ids=torch.tensor([[30]]), past_key_values=cache)


def test_refuses_what_is_no_cache(fast, inputs):
    with (
        torch.no_grad(),
        pytest.raises(InputError, match="past_key_values must be a transformers Cache, got tuple"),
    ):
        fast(**inputs, past_key_values=((torch.ones(1), torch.ones(1)),))


NO_STREAM = torch.backends.cuda.is_built() and not torch.cuda.is_available()  # then transformers itself makes no offloaded cache


@pytest.mark.parametrize("kind", ["static", pytest.param("offloaded", marks=pytest.mark.skipif(NO_STREAM, reason="a build for GPUs"))])
def test_refuses_caches_with_buffers_of_their_own(fast, inputs, kind):
    with pytest.raises(
        NotSupported, match="a compiled model brings its own buffers; leave cache_implementation unset"
    ):
        fast.generate(**inputs, max_new_tokens=2, cache_implementation=kind)


class Rounding(DynamicLayer):
    """A cache layer that holds keys and values in a way of its own, as quantized ones do."""


def test_refuses_caches_of_layers_that_would_not_be_used(fast, inputs):
    for cache in (Cache(layers=[Rounding()]), Cache(layer_class_to_replicate=Rounding)):
        with torch.no_grad(), pytest.raises(NotSupported, match="a Cache cannot be used: a compiled model brings its own buffers"):
            fast(**inputs, past_key_values=cache)


def test_refuses_a_prompt_in_pieces(fast, inputs):
    message = "prefill_chunk_size=8 brings the prompt in pieces, but a compiled model chooses from the whole prompt what stays"
    config = GenerationConfig(prefill_chunk_size=8)
    for options in ({"prefill_chunk_size": 8}, {"generation_config": config}):
        with pytest.raises(NotSupported, match=message):
            fast.generate(**inputs, max_new_tokens=2, **options)


@pytest.mark.parametrize(
    "change", [lambda cache: cache.crop(-1), lambda cache: cache.crop(10), lambda cache: cache.reset()]
)
def test_refuses_to_shorten_its_cache(fast, inputs, change):
    with torch.no_grad():
        cache = fast(**inputs, use_cache=True).past_key_values
    with pytest.raises(NotSupported, match=r"a compiled model's cache cannot be (cropped|reset)"):
        change(cache)


def test_refuses_generation_that_needs_cropping(fast, inputs):
    """From 5.24 on transformers asks the cache itself whether it can be cropped."""
    with pytest.raises((NotSupported, ValueError), match=r"cannot be cropped, so assisted|requires a cache that can be cropped"):
        fast.generate(**inputs, max_new_tokens=3, prompt_lookup_num_tokens=2)


@pytest.mark.parametrize("option", ["output_attentions", "output_hidden_states"])
def test_refuses_values_that_the_graph_does_not_keep(fast, inputs, option):
    message = f"{option}=True: the compiled graph keeps no such values; ask the source model for them"
    with pytest.raises(NotSupported, match=message):
        fast.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, **{option: True})
    with torch.no_grad(), pytest.raises(NotSupported, match=message):
        fast(**inputs, **{option: True})


def test_refuses_positional_arguments_to_the_decoder(fast):
    with (
        torch.no_grad(),
        pytest.raises(NotSupported, match="call the compiled decoder with keyword arguments"),
    ):
        fast.get_decoder()(torch.ones(1, 3, dtype=torch.int64))
