"""`torch.set_default_dtype` changes nothing: every number of ours has a type of its own (every op: tests/ops/test_opcheck.py)."""

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.exporters.prompt import additive
from lightvlm_fx.support import answer, difference


@pytest.fixture(scope="module")
def tiny():
    return zoo.build("llava", layers=4)


@pytest.fixture
def half():
    """Makes bfloat16 the default when called; the old one comes back."""
    yield lambda: torch.set_default_dtype(torch.bfloat16)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("schedule", [
    lightvlm.Schedule.preset("lightvlm"),
    lightvlm.Schedule.preset("scissorhands", capacity=40),  # `marks`, which decoding carries on
    lightvlm.Schedule.preset("sparsevila"),
], ids=lambda s: s.name)  # fmt: skip
def test_answers_are_the_same(tiny, half, schedule):
    inputs = tiny.inputs(text=(9, 6), images=(1, 1))
    wanted = answer(lightvlm.compile(tiny.model, schedule, backend="eager"), inputs)
    half()
    assert difference(wanted, answer(lightvlm.compile(tiny.model, schedule, backend="eager"), inputs)) == 0


def test_a_mask_keeps_its_lowest_number(half):
    half()
    mask = additive(torch.tensor([True, False]), torch.float32)
    assert mask.tolist() == [0.0, torch.finfo(torch.float32).min]
