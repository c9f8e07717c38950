"""The model in the box: its size, its figures on held-out scenes, and transformers' own ways of using it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, TextStreamer, pipeline

import lightvlm_fx as lightvlm
from lightvlm_fx import bundled
from lightvlm_fx.bundled import scenes
from lightvlm_fx.eval import accuracy as evaluate
from lightvlm_fx.eval import demo
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import ALL


@pytest.fixture(scope="module")
def box():
    return bundled.load()


@pytest.fixture(scope="module")
def fast(box):
    return lightvlm.compile(box[0], "lightvlm", backend="eager")


def test_is_a_small_llava_of_the_promised_shape(box):
    model, _ = box
    assert type(model) is LlavaForConditionalGeneration
    assert model.config.vision_config.model_type == "clip_vision_model"
    assert len(model.get_decoder().layers) >= 8
    assert model.config.image_seq_length >= 144
    assert sum(p.numel() for p in model.parameters()) <= 6_000_000
    assert (bundled.HOME / "model.safetensors").stat().st_size <= 12_000_000


def test_answers_held_out_questions_of_every_kind(box):
    """The model card's bar is 0.90 overall and 0.85 a kind over hundreds of questions; 30 a kind leave room for chance."""
    score = evaluate.evaluate(*box, evaluate.held_out(30), "full")
    assert score.accuracy() >= 0.88
    assert all(score.accuracy(kind) >= 0.7 for kind in scenes.KINDS)


def test_keeps_its_accuracy_under_the_default_schedule(box, fast):
    samples = evaluate.held_out(20)
    full, reduced = (evaluate.evaluate(m, box[1], samples, "") for m in (box[0], fast))
    assert reduced.accuracy() >= 0.95 * full.accuracy()
    assert fast.lightvlm.report.of("prefill")[0].visual_per_layer == (144, 144, 101, 101, 101, 72, 72, 50)


def test_smaller_pictures_lose_most_on_a_model_that_saw_one_size():
    score = evaluate.scores({"smaller": Schedule.preset("downsample")}, 10, kinds=("shape",))
    assert score[1].accuracy() < score[0].accuracy()


def test_held_out_digits_are_not_in_training():
    old = {scan.tobytes() for scans in scenes.digit_scans(False).values() for scan in scans}
    new = {scan.tobytes() for scans in scenes.digit_scans(True).values() for scan in scans}
    assert len(new) > 300
    assert not old & new


def test_descriptions_are_long_and_name_what_is_there(box):
    samples = evaluate.held_out(4, ["describe"])
    answers = evaluate.answer(*box, samples)
    assert min(len(text.split()) for text in answers) >= 60
    assert np.mean([evaluate.placed(text, sample.question.answer) for text, sample in zip(answers, samples, strict=True)]) >= 0.9


@pytest.mark.parametrize("size", [(96, 96), (384, 384), (150, 150), (640, 480), (31, 200)])
def test_takes_pictures_of_any_size(box, fast, size):
    with Image.open(bundled.PICTURES / "1-crowd.png") as crowd:
        picture = crowd.resize(size)
    assert [demo.ask(model, box[1], picture, "how many objects are there ?")[0] for model in (box[0], fast)] == ["eight"] * 2


@pytest.mark.compat
def test_drops_into_the_pipeline(box, fast):
    name, picture, questions = next((p.stem, p, q) for p, q in demo.bundled())
    message = [{"role": "user", "content": [{"type": "image", "url": str(picture)}, {"type": "text", "text": questions[0]}]}]
    made = pipeline("image-text-to-text", model=fast, processor=box[1])
    out = made(text=message, max_new_tokens=8, return_full_text=False)
    assert out[0]["generated_text"].strip() == demo.ask(fast, box[1], Image.open(picture), questions[0])[0], name


def test_streams_tokens(box, fast, capsys):
    path, questions = demo.bundled()[0]
    streamer = TextStreamer(box[1].tokenizer, skip_prompt=True, skip_special_tokens=True)
    text, _ = demo.ask(fast, box[1], Image.open(path), questions[0], streamer=streamer)
    assert capsys.readouterr().out.strip() == text


def test_samples_the_same_tokens_at_keep_1(box):
    whole = lightvlm.compile(box[0], lightvlm.Schedule.preset("lightvlm", keep=ALL), backend="eager")
    path, _ = demo.bundled()[0]
    texts = []
    for model in (box[0], whole):
        torch.manual_seed(3)
        texts.append(demo.ask(model, box[1], Image.open(path), "describe the picture .", do_sample=True, temperature=1.5)[0])
    assert texts[0] == texts[1]


def test_image_before_or_after_the_text_is_one_prompt(box):
    parts = [{"type": "image"}, {"type": "text", "text": "hello"}]
    prompts = {box[1].apply_chat_template([{"role": "user", "content": c}], add_generation_prompt=True) for c in (parts, parts[::-1])}
    assert len(prompts) == 1
