"""Questions answered as rows of one batch: as one by one, and bad ones hold up no others."""

import pytest
from served import Letters

import lightvlm_fx as lightvlm
from lightvlm_fx import bundled
from lightvlm_fx.errors import InputError
from lightvlm_fx.exporting.example import example
from lightvlm_fx.serving.artifact import ArtifactEngine
from lightvlm_fx.serving.limits import Limits
from lightvlm_fx.serving.model import ModelEngine
from lightvlm_fx.serving.rows import Answer, Rows

PICTURES = [str(path) for path in sorted(bundled.PICTURES.glob("*.png"))]
GOOD = [
    ("how many objects are there ?", PICTURES[0]), ("describe the picture", PICTURES[1]), ("what is it ?", None),
    ("is there a red circle ?", [PICTURES[2]]), ("how many objects are there ?", bundled.PICTURES.joinpath("1-crowd.png").read_bytes()),
]  # fmt: skip
BAD = [("what ?", b"no picture"), ("what ?", "/nowhere.png"), ("word " * 400, PICTURES[0]), (None, PICTURES[0]), ("what ?", 7)]
SAID = ["not a picture that Pillow can read", "no such file", "the prompt has", "expected a question as text, got None", "got 7"]


@pytest.fixture(scope="module")
def model_engine():
    model, processor = bundled.load()
    return ModelEngine(lightvlm.compile(model, "lightvlm", backend="eager"), processor, "bundled")


@pytest.fixture(scope="module")
def artifact_engine(model_engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "bundled"
    model, processor = bundled.load()
    inputs = [example(processor, [], rows=3, images=1)]
    lightvlm.export(model, "lightvlm", folder, inputs=inputs, processor=processor, new_tokens=64)
    return ArtifactEngine(lightvlm.load(folder), "bundled")


@pytest.mark.parametrize("kind", ["model", "artifact"])
def test_a_batch_answers_as_each_row_alone(kind, request):
    engine = request.getfixturevalue(f"{kind}_engine")
    calls, generate = [], engine.generate
    engine.generate = lambda inputs, **options: calls.append(len(inputs["input_ids"])) or generate(inputs, **options)
    rows = Rows(engine, limits=Limits(prompt_tokens=300), max_new_tokens=40)
    mixed = [row for pair in zip(GOOD, BAD, strict=True) for row in pair]
    alone = [rows.answer([question])[0] for question in GOOD]
    calls.clear()
    together = rows.answer(mixed)
    del engine.generate
    assert together[::2] == alone
    assert max(calls) == (4 if kind == "model" else 3)  # an artifact takes as many as it was exported for
    assert alone[0].text == alone[4].text
    assert len({answer.text for answer in alone}) > 2
    assert {answer.finish for answer in alone} <= {"stop", "length"}
    assert all(0 < answer.tokens <= 40 and not answer.error for answer in alone)
    for answer, said in zip(together[1::2], SAID, strict=True):
        assert said in answer.error
        assert answer == Answer(error=answer.error)


def test_a_row_that_the_engine_refuses_is_the_only_one():
    class Picky(Letters):
        def generate(self, inputs, **options):
            if (inputs["input_ids"].sum(1) == 0).any() and inputs["input_ids"].shape[1] == 5:
                raise InputError("not five")
            import numpy as np

            return np.pad(inputs["input_ids"], ((0, 0), (0, 2)), constant_values=98)

    found = Rows(Picky(), max_new_tokens=2).answer([("hello", None), ("you", None), ("all", None)])
    assert found == [Answer(error="not five"), Answer("bb", 2, "length"), Answer("bb", 2, "length")]


def test_an_answer_longer_than_the_room_is_refused_before_any_row():
    class Small(Letters):
        longest = 8

    with pytest.raises(InputError, match="max_new_tokens is 9, but the artifact has room for 8"):
        Rows(Small(), max_new_tokens=9)
