"""One model under several schedules, captured once."""

import pytest

import lightvlm_fx as lightvlm
from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.runtime import graphs as runtime
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import answer, difference

ONE = Schedule.preset("lightvlm", keep=0.5, layers=(1,), capacity=24)
OTHER = Schedule.preset("uniform", keep=0.3, layers=(2,))


@pytest.fixture
def captures(monkeypatch):
    """How often a graph was captured."""
    made = []

    def counted(*args, **kwargs):
        made.append(args)
        return capture(*args, **kwargs)

    capture = runtime.capture
    monkeypatch.setattr(runtime, "capture", counted)
    return made


def test_answers_as_compiled_anew_without_capturing_anew(llava, captures):
    inputs = llava.inputs(text=(9,), images=(2,))
    first = lightvlm.compile(llava.model, ONE, backend="eager")
    one, known = answer(first, inputs, 8), len(captures)
    second = first.lightvlm.with_schedule(OTHER)
    assert second.lightvlm.schedule == OTHER
    other = answer(second, inputs, 8)
    assert len(captures) == known == 2
    assert difference(other, answer(lightvlm.compile(llava.model, OTHER, backend="eager"), inputs, 8)) == 0
    assert difference(one, other) > 0
    assert difference(one, answer(first, inputs, 8)) == 0  # the first one is as it was


def test_keeps_the_options_of_the_first(llava, tmp_path):
    first = lightvlm.compile(llava.model, "none", backend="eager", dump=tmp_path)
    second = first.lightvlm.with_schedule("fastv")
    assert second.lightvlm.report.backend == "eager"
    assert second.lightvlm.schedule == Schedule.preset("fastv")
    answer(second, llava.inputs(), 1)
    assert [*tmp_path.glob("*reduce-tokens.txt")]


def test_refuses_what_compile_refuses(llava):
    first = lightvlm.compile(llava.model, "none", backend="eager")
    with pytest.raises(ScheduleError, match="expected a Schedule, a preset's name or the path"):
        first.lightvlm.with_schedule(3)
