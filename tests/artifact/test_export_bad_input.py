"""What `export` refuses, with the reason, and that it leaves model and folder as they were."""

import pytest
import torch
from artifacts import BOUNDED, contents, state_of

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import CaptureError, InputError, LightVLMError, ScheduleError, UnknownName
from lightvlm_fx.exporting.export import record_parity
from lightvlm_fx.schedule import Schedule


@pytest.fixture
def refused(tiny, tmp_path):
    """Export with these options over a folder that says it is an artifact; returns the error."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "lightvlm.json").write_text("old")

    def call(kind, schedule=BOUNDED, inputs=None, **options):
        before = state_of(tiny.model)
        given = tiny.inputs(text=(9,), images=(1,)) if inputs is None else inputs
        with pytest.raises(kind) as error:
            lightvlm.export(tiny.model, schedule, options.pop("out", out), inputs=given, **options)
        assert state_of(tiny.model) == before
        assert contents(tmp_path) == {"out/lightvlm.json": b"old"} | ({"mine/notes.txt": b"mine"} if (tmp_path / "mine").exists() else {})
        assert {f.name for f in tmp_path.iterdir()} <= {"out", "mine"}
        return str(error.value)

    return call


@pytest.mark.parametrize(("options", "message"), [
    ({"target": "onnx-runtime"}, "no target named 'onnx-runtime'; did you mean 'onnxruntime'?\n  known: onnxruntime, "),
    ({"dtype": "fp16"}, "no precision named 'fp16'"), ({"provider": "gpu"}, "no provider named 'gpu'"),
])  # fmt: skip
def test_unknown_names(refused, options, message):
    assert message in refused(UnknownName, **options)


@pytest.mark.parametrize(("options", "message"), [
    ({"new_tokens": 0}, "new_tokens must be at least 1, got 0"), ({"new_tokens": -5}, "new_tokens must be at least 1, got -5"),
    ({"prompt_tokens": 45}, "prompt_tokens=45 must be above the example's 45 tokens"),
    ({"prompt_tokens": 3}, "prompt_tokens=3 must be above the example's 45 tokens"),
    ({"prompt_tokens": (60, 70)}, "2 prompt lengths for 1 example batches; give one each, or one for all"),
])  # fmt: skip
def test_sizes(refused, options, message):
    assert message in refused(InputError, **options)


def test_neither_inputs_nor_processor(tiny, tmp_path):
    with pytest.raises(InputError, match="export needs inputs=, an example batch, or processor="):
        lightvlm.export(tiny.model, BOUNDED, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["pixel_values", "input_ids"])
def test_an_example_that_lacks_something(refused, tiny, name):
    inputs = {k: v for k, v in tiny.inputs(text=(9,), images=(1,)).items() if k != name}
    assert f"an example batch needs {name}, got [" in refused(InputError, inputs=inputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "60", 60.0, True, [None]], ids=repr)
@pytest.mark.parametrize("name", ["new_tokens", "images", "prompt_tokens"])
def test_sizes_are_whole_numbers(refused, name, value):
    assert f"{name} must be a whole number, got " in refused(InputError, **{name: value})


def test_an_example_with_a_video(refused, tiny):
    """It has no pixel_values, and was told to pass all that the processor returned."""
    inputs = {"pixel_values_videos" if k == "pixel_values" else k: v for k, v in tiny.inputs(text=(9,), images=(1,)).items()}
    assert "holds a video (pixel_values_videos); an artifact takes still pictures" in refused(InputError, inputs=inputs)


def test_an_example_without_a_picture_in_its_prompt(refused, tiny):
    inputs = tiny.inputs(text=(9,), images=(0,)) | {"pixel_values": torch.zeros(1, 3, 48, 48)}
    assert "needs a picture in its prompt" in refused(InputError, inputs=inputs)


def test_fewer_pictures_than_the_example_has(refused, tiny):
    inputs = tiny.inputs(text=(9, 9), images=(1, 2))
    assert "images=1 is below the 2 pictures that a row of the example has" in refused(InputError, inputs=inputs, images=1)
    assert "images must be at least 1, got 0" in refused(InputError, images=0)


def test_rows_with_different_pictures_of_a_tower_of_one_size(tmp_path):
    inputs = zoo.build("aria", layers=2).inputs(text=(9, 9), images=(1, 2))
    with pytest.raises(InputError, match="takes pictures of the example's sizes only, so its rows need the same ones"):
        lightvlm.export(zoo.build("aria", layers=2).model, Schedule.preset("fastv", layer=1), tmp_path / "out", inputs=inputs)


def test_no_examples(refused):
    refused(InputError, inputs=[])


def test_a_folder_with_other_files(refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "mine holds something that is no artifact of lightvlm_fx" in refused(InputError, out=tmp_path / "mine")


def test_schedules_that_do_not_fit(refused):
    assert "no preset named" in refused(LightVLMError, schedule="no-such-schedule")
    assert "6" in refused(ScheduleError, schedule=Schedule.preset("lightvlm", keep=0.5, layers=(6,)))


def test_a_model_that_is_none(tiny, tmp_path):
    for thing in (torch.nn.Linear(2, 2), tiny.model.get_decoder(), "a name"):
        with pytest.raises((CaptureError, InputError)):
            lightvlm.export(thing, BOUNDED, tmp_path / "out", inputs=tiny.inputs(text=(9,), images=(1,)))
    assert not list(tmp_path.iterdir())


def test_an_error_on_the_way(refused):
    """After the capture, which changes the model for a while."""

    class Stop(Exception):
        pass

    def tell(line):
        if "writing vision" in line:
            raise Stop

    refused(Stop, tell=tell)


@pytest.mark.parametrize("at", [0, 1])
def test_an_example_whose_answer_ends_at_once(tmp_path, at):
    """The answer that goes with an artifact is kept from ending, its logits are not: that was called a defect."""
    tiny = zoo.build("llava", layers=1)
    example = tiny.inputs(text=(9,), images=(1,))
    fast = lightvlm.compile(tiny.model, "none", backend="eager")
    end = int(fast.generate(**example, max_new_tokens=2, do_sample=False)[0, at - 2])
    tiny.model.generation_config.eos_token_id = end
    made = lightvlm.export(tiny.model, "none", tmp_path / "out", inputs=example, new_tokens=8)
    assert made.manifest["eos_token_id"] == [end]
    assert made.manifest["parity"]["tokens_equal"]
    want = fast.generate(**example, max_new_tokens=8, do_sample=False, eos_token_id=end)
    assert made.load().generate(**example, max_new_tokens=8).tolist() == want.tolist()
    assert want.shape[1] <= example["input_ids"].shape[1] + 2


@pytest.mark.parametrize(("dtype", "logits"), [("float16", 0.2), ("int8", 0.3), ("float16", float("inf")), ("float32", float("inf"))])
def test_logits_that_rounding_does_not_explain(tmp_path, monkeypatch, dtype, logits):
    monkeypatch.setattr("lightvlm_fx.artifact.verify.parity", lambda *a: {"logits": logits, "tokens_equal": True, "tokens_apart": 0.0})
    with pytest.raises(CaptureError, match="of the largest apart"):
        record_parity(tmp_path, {"target": "onnxruntime", "dtype": dtype})


def test_an_artifact_with_files_of_the_users(tiny, tmp_path):
    home = tmp_path / "out"
    home.mkdir()
    (home / "lightvlm.json").write_text("{}")
    (home / "my-notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"out holds my-notes\.txt beside the files that its lightvlm\.json lists"):
        lightvlm.export(tiny.model, BOUNDED, home, inputs=tiny.inputs(text=(9,), images=(1,)))
    assert contents(tmp_path) == {"out/lightvlm.json": b"{}", "out/my-notes.txt": b"mine"}


def test_one_new_token(tmp_path):
    tiny = zoo.build("llava", layers=1)
    made = lightvlm.export(tiny.model, "none", tmp_path / "out", inputs=tiny.inputs(text=(9,), images=(1,)), new_tokens=1)
    assert made.manifest["parity"]["tokens_equal"]
