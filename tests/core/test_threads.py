"""Threads that answer at once, each as one thread alone does (more: `python -m tests.fuzz.threads`)."""

import threading

import pytest
import torch
from fuzz.threads import NEAR, asked, at_once, compiled_anew, export_of, from_each, state

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo

SIZES = (((9,), (1,)), ((9, 6), (1, 2)), ((14,), (2,)))
HALF = lightvlm.Schedule.preset("fastv", layer=1, keep=0.5)
WAIT = 200  # seconds, after which a thread hangs


@pytest.fixture(scope="module")
def batches(llava):
    return [llava.inputs(text=text, images=images) for text, images in SIZES]


@pytest.fixture(scope="module")
def first(llava):
    return lightvlm.compile(llava.model, "none", backend="eager")


@pytest.mark.compat
def test_a_cold_and_then_warm_model_and_its_source_beside_it(llava, batches, first):
    questions, of_source = asked(first.lightvlm.with_schedule("lightvlm"), batches), asked(llava.model, batches)
    before, fast = state(llava.model), lightvlm.compile(llava.model, "lightvlm", backend="eager")
    for _ in ("cold", "warm"):
        jobs = from_each(fast, questions, 8, 4) + from_each(llava.model, of_source, 2, 12)
        assert at_once(jobs, WAIT) == {"clear": 8 * 4 + 2 * 12}
    assert state(llava.model) == before
    buckets = fast.lightvlm.report.buckets
    assert len({(b.stage, b.rows > 1) for b in buckets}) == len(buckets)  # each was built once


def test_other_schedules_at_once(llava, batches, first):
    names = ("sparsevila", "tome")  # one that watches the tower, one that traces it
    questions = {name: asked(first.lightvlm.with_schedule(name), batches[:1]) for name in names}
    jobs = [[step] for name in names for step in compiled_anew(llava.model, first, name, questions[name])]
    assert at_once(jobs, WAIT) == {"clear": 2 * len(names)}


@pytest.fixture(scope="module")
def small():
    return zoo.build("llava", layers=2)


def test_an_export_beside(small):
    batch = small.inputs(text=(9,), images=(1,))
    fast = lightvlm.compile(small.model, HALF, backend="eager")
    questions, of_source, before = asked(fast, [batch], NEAR), asked(small.model, [batch], NEAR), state(small.model)
    jobs = [export_of(small.model, HALF, batch), *from_each(fast, questions, 2, 10), *from_each(small.model, of_source, 2, 20)]
    assert at_once(jobs, WAIT) == {"clear": 1 + 2 * 10 + 2 * 20}
    assert state(small.model) == before


def test_inductor_compiles_once_for_all_threads(small):
    questions = asked(lightvlm.compile(small.model, HALF, backend="eager"), [small.inputs(text=(9,), images=(1,))], NEAR)
    fast = lightvlm.compile(small.model, HALF)
    assert at_once(from_each(fast, questions, 4, 2), WAIT) == {"clear": 8}
    assert [len(entry.compiled.made) for entry in fast.lightvlm._decoder.graphs.entries.values()] == [1, 1]


def test_a_thread_that_hangs_is_counted():
    never = threading.Event()
    assert at_once([[lambda: "clear"], [never.wait, lambda: "clear"]], wait=0.2) == {"clear": 1, "hang": 2}
    never.set()


def test_an_error_is_counted():
    def fails():
        raise ValueError("no")

    assert at_once([[fails, lambda: "clear"]]) == {"crash: ValueError: no": 1, "clear": 1}


def test_wrong_answers_are_counted(llava, batches, first):
    (ask,) = asked(llava.model, batches[:1])
    cut = first.lightvlm.with_schedule(lightvlm.Schedule.preset("uniform", keep=0.3, layers=(2,)))
    assert ask(cut).startswith("wrong: off by")
    assert torch.compiler.is_compiling() is False
