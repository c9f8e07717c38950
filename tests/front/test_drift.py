"""Drift: led along the right answers, a model is compared with itself, with a plain forward pass, and with a reduced one."""

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import bundled
from lightvlm_fx.eval import drift
from lightvlm_fx.eval.accuracy import held_out
from lightvlm_fx.pictures import prompt


@pytest.fixture(scope="module")
def box():
    return bundled.load()


@pytest.fixture(scope="module")
def samples():
    return held_out(2, ["where", "describe"])


def test_predictions_are_those_of_a_forward_pass_over_prompt_and_answer(box, samples):
    model, processor = box
    for sample, made in zip(samples, drift.predictions(model, processor, samples), strict=True):
        whole = f"{prompt(processor, sample.question.text)} {sample.question.answer}"
        inputs = processor(images=[sample.picture], text=[whole], return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits[0, -len(made) :].log_softmax(-1)
        torch.testing.assert_close(made, expected, atol=1e-3, rtol=1e-3)


def test_a_schedule_that_reduces_nothing_does_not_drift():
    (same,) = drift.drifts({"none": lightvlm.Schedule.preset("none")}, 2, kinds=["where", "describe"])
    assert set(same.nats) == {"where", "describe", "describe: places"}
    assert all(abs(nats).max() < 1e-4 for nats in same.nats.values())


def test_fewer_tokens_drift_further_and_places_are_a_part_of_it():
    schedules = {str(keep): lightvlm.Schedule.preset("random", keep=keep) for keep in (0.35, 0.03)}
    mild, hard = drift.drifts(schedules, 6, kinds=["describe"])
    more, error = drift.compared(hard, mild, "describe")
    assert more > 0
    assert error > 0
    assert 0 < hard.nats["describe: places"].mean() < hard.nats["describe"].mean()


def test_divergence_is_kullback_leiblers():
    draw = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 7, generator=draw).log_softmax(-1) for _ in "pq")
    expected = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (p, q)))
    torch.testing.assert_close(drift.divergence(p, q), expected)
