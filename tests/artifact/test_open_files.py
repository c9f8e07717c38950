"""What was hashed is what is read: after the folder was moved, deleted, replaced or written to. What is not listed is not read."""

import os
import shutil

import numpy as np
import pytest
from artifacts import contents, copied, manifest, rewrite, split

import lightvlm_fx as lightvlm
from lightvlm_fx.errors import ArtifactError, InputError
from lightvlm_fx.exporters.folder import written_aside

NEW = 4


@pytest.fixture(scope="module")
def inputs(tiny):
    return tiny.inputs(text=(9,), images=(1,))


@pytest.fixture(scope="module")
def said(bounded, inputs):
    """What the untouched artifact answers."""
    return lightvlm.load(bounded).generate(**inputs, max_new_tokens=NEW).tolist()


def replaced(folder):
    """As an export does it: another artifact in its place, here one whose weights are zeros."""
    before = contents(folder)
    with written_aside(folder) as aside:
        for name, data in before.items():
            (aside / name).parent.mkdir(exist_ok=True)
            (aside / name).write_bytes(bytes(len(data)) if name == "model.onnx.data" else data)


GONE = {
    "moved": lambda f: f.rename(f.with_name("elsewhere")), "deleted": shutil.rmtree, "replaced": replaced,
    "new weights": lambda f: ((f / "model.onnx.data").rename(f / "old"), (f / "model.onnx.data").write_bytes(bytes(448512))),
    "new graph": lambda f: ((f / "decode.onnx").rename(f / "old"), (f / "decode.onnx").write_bytes(b"")),
}  # fmt: skip


@pytest.mark.parametrize("answered", [False, True], ids=["before an answer", "after one"])
@pytest.mark.parametrize("what", GONE)
def test_answers_as_it_was_loaded(broken, inputs, said, what, answered):
    vlm = lightvlm.load(broken)
    if answered:
        vlm.generate(**inputs, max_new_tokens=1)
    GONE[what](broken)
    assert vlm.generate(**inputs, max_new_tokens=NEW).tolist() == said


def overwritten(path):
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))
    os.utime(path, ns=(1, 1))  # the clock of a file system may be coarse


WRITTEN = {"cut off": lambda path: os.truncate(path, 4096), "empty": lambda path: os.truncate(path, 0), "overwritten": overwritten,
           "longer": lambda path: os.truncate(path, path.stat().st_size + 4096)}  # fmt: skip


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("answered", [False, True], ids=["before an answer", "after one"])
@pytest.mark.parametrize("how", WRITTEN)
def test_weights_that_are_written_to_in_place_are_an_error(broken, inputs, how, answered, verify):
    """Mapped, they would answer otherwise, or end the process by SIGBUS."""
    vlm = lightvlm.load(broken, verify=verify)
    if answered:
        vlm.generate(**inputs, max_new_tokens=1)
    WRITTEN[how](broken / "model.onnx.data")
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data was written to since the artifact was loaded; load it again"):
        vlm.generate(**inputs, max_new_tokens=NEW)


def test_weights_that_are_written_to_between_two_steps(broken, inputs):
    vlm = lightvlm.load(broken)

    class Cut:
        def __init__(self):
            self.count = 0

        def put(self, tokens):
            self.count += 1
            if self.count == 3:
                os.truncate(broken / "model.onnx.data", 0)

    with pytest.raises(ArtifactError, match="was written to"):
        vlm.generate(**inputs, max_new_tokens=NEW, streamer=Cut())


def test_nothing_stays_open(bounded):
    before = len(os.listdir("/proc/self/fd"))
    vlm = lightvlm.load(bounded)
    assert len(os.listdir("/proc/self/fd")) > before
    del vlm
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_bucket_of_fixed_sizes_needs_no_folder(bounded, tiny, tmp_path):
    """It compares every request with the example's pictures, which were read from the folder each time."""
    home = copied(bounded, tmp_path / "fixed")
    rewrite(home, lambda m: m["buckets"][0].update(vision={"kind": "fixed", "why": ["a test"]}))
    vlm = lightvlm.load(home)
    shutil.rmtree(home)
    inputs = tiny.inputs(text=(9, 9), images=(1, 1))
    assert vlm.bucket(*split(inputs), 1) == 0
    with pytest.raises(InputError, match="pixel_values have the shape"):
        vlm.generate(**inputs | {"pixel_values": inputs["pixel_values"][..., :40]}, max_new_tokens=1)


# --- files that no manifest lists -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["special_tokens_map.json", "chat_template.json", "chat_template.jinja", "added_tokens.json", "vocab.txt",
                                  "additional_chat_templates/other.jinja", "processing.py"])  # fmt: skip
def test_verify_names_files_that_a_processor_would_read(broken, name):
    (broken / name).parent.mkdir(exist_ok=True)
    (broken / name).write_text("{}")
    verdict = lightvlm.verify(broken)
    assert verdict.exit_code == 1
    said = name.partition("/")[0] if "/" in name else name
    assert any(line.startswith(said) and "not listed in the manifest" in line for line in verdict.files), verdict.files


def test_verify_leaves_other_files_alone(broken):
    (broken / "README.md").write_text("mine")
    (broken / "engines").mkdir()
    (broken / "engines" / "decode.plan").write_text("built")
    assert lightvlm.verify(broken).exit_code == 0


def test_an_unlisted_generation_config_is_not_read(broken, inputs, said):
    rewrite(broken, lambda m: m["files"].pop("generation_config.json"))
    (broken / "generation_config.json").write_text('{"max_new_tokens": 1, "repetition_penalty": 9.0}')
    assert lightvlm.load(broken).generate(**inputs, max_new_tokens=NEW).tolist() == said


def test_only_what_is_listed_reaches_a_processor(broken, tmp_path):
    (broken / "chat_template.jinja").write_text("not exported")
    to = lightvlm.load(broken).files.copied(tmp_path / "to")
    assert sorted(f.name for f in to.iterdir()) == ["config.json", "generation_config.json"]
    assert (to / "config.json").read_bytes() == (broken / "config.json").read_bytes()


def test_a_sample_is_read_as_it_was_hashed(broken):
    vlm = lightvlm.load(broken)
    name = manifest(broken)["buckets"][0]["samples"]["logits"]
    want = np.load(broken / name)
    assert np.array_equal(vlm.files.array(name), want)
    overwritten(broken / name)
    with pytest.raises(ArtifactError, match=r"logits\.npy was written to"):
        vlm.files.array(name)
