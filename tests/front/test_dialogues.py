"""Two questions over one cache, on the bundled model."""

import pytest

from lightvlm_fx.eval import dialogues
from lightvlm_fx.schedule import Schedule

COUNT = 16


@pytest.fixture(scope="module")
def turns():
    presets = {
        "lightvlm": {"capacity": 0.25}, "sparsevila": {}, "aircache": {"capacity": 0.1},
        "sparsevila merged": {"capacity": 0.05, "keep": 1.0}, "sparsevila unmerged": {"capacity": 0.05, "keep": 1.0, "merge": "none"},
    }  # fmt: skip
    made = dialogues.turns({name: Schedule.preset(name.split()[0], **options) for name, options in presets.items()}, COUNT)
    return {score.name: score for score in made}


def test_the_full_model_answers_both(turns):
    assert turns["full model"].as_full == (1.0, 1.0)
    assert min(turns["full model"].right) >= 0.8


@pytest.mark.parametrize("name", ["lightvlm", "sparsevila"])
def test_a_second_question_is_answered_as_by_the_full_model(turns, name):
    assert min(turns[name].as_full) >= 0.9


def test_few_entries_answer_for_the_others_where_they_are_counted(turns):
    """7 of 144."""
    assert sum(turns["sparsevila merged"].as_full) > sum(turns["sparsevila unmerged"].as_full)


def test_entries_chosen_for_the_first_question_serve_the_second_worse(turns):
    assert turns["aircache"].as_full[1] < turns["sparsevila"].as_full[1]


def test_dialogues_ask_two_different_questions_about_held_out_scenes():
    made = dialogues.held_out(5)
    assert all(a.text != b.text for a, b in (d.questions for d in made))
    assert [d.questions for d in made] == [d.questions for d in dialogues.held_out(5)]
