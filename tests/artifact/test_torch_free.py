"""Tier 5: an artifact answers in an environment that has NumPy and onnxruntime, and nothing else of ours."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from artifacts import interpreter_with, rewrite
from built import build

import lightvlm_fx
from lightvlm_fx.bundled import PICTURES
from lightvlm_fx.releases import NO_TORCH

ABSENT = ("torch", "transformers", "pydantic", "onnx", "onnx_ir", "onnxscript", "typer", "rich", "PIL", "safetensors")
SCRIPT = f"""
import importlib.util, json, sys
from pathlib import Path
import numpy as np
import lightvlm_fx as lightvlm

folder = Path(sys.argv[1])
present = [name for name in {ABSENT} if importlib.util.find_spec(name)]
vlm = lightvlm.load(folder)
answers = []
for number, bucket in enumerate(vlm.manifest["buckets"]):
    arrays = {{name: np.load(folder / file) for name, file in bucket["samples"].items()}}
    inputs = {{name.removeprefix("inputs."): x for name, x in arrays.items() if name.startswith("inputs.")}}
    new = arrays["sequences"].shape[1] - inputs["input_ids"].shape[1]
    answers.append(vlm.generate(**inputs, max_new_tokens=new, min_new_tokens=new).tolist())
verdict = lightvlm.verify(folder).as_dict()
loaded = [name for name in {ABSENT} if name in sys.modules]
print(json.dumps({{"present": present, "loaded": loaded, "answers": answers, "verdict": verdict}}))
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """The interpreter of a new environment with the two packages, of the versions that are installed here."""
    return interpreter_with(tmp_path_factory.mktemp("bare") / "venv", "numpy", "onnxruntime")


def test_answers_without_torch(bare_python, bounded):
    env = {"PYTHONPATH": str(Path(lightvlm_fx.__file__).parents[1]), "PYTHONWARNINGS": "error", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([bare_python, "-c", SCRIPT, str(bounded)], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["present"] == found["loaded"] == []
    assert found["answers"] == [np.load(bounded / "samples" / "0.sequences.npy").tolist()]
    assert found["verdict"]["exit_code"] == 0
    assert found["verdict"]["skipped"] == ["lint: the package onnx is not installed"]


def wheel_of_the_source_distribution(scratch):
    with tarfile.open(build("sdist", scratch / "first")) as file:
        file.extractall(scratch / "unpacked", filter="data")
    [unpacked] = (scratch / "unpacked").iterdir()
    (scratch / "again").mkdir()
    unpacked.rename(scratch / "again" / "source")
    return build("wheel", scratch / "again")


@pytest.mark.parametrize("made", [lambda scratch: build("wheel", scratch), wheel_of_the_source_distribution], ids=["checkout", "sdist"])
def test_the_wheel_alone_answers_without_torch(bare_python, bounded, tmp_path, made):
    """Beside numpy and onnxruntime alone: what `load` and `verify` need."""
    pip = [sys.executable, "-m", "pip", "--python", str(bare_python), "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall"]
    done = subprocess.run([*pip, str(made(tmp_path))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    call = [bare_python, "-c", SCRIPT + "print(lightvlm.__file__)", str(bounded)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, check=False)
    assert done.returncode == 0, done.stderr
    found, home = done.stdout.splitlines()
    assert str(bare_python.parents[1]) in home
    assert json.loads(found)["answers"] == [np.load(bounded / "samples" / "0.sequences.npy").tolist()]


@pytest.mark.full
def test_an_install_to_run_artifacts_brings_no_torch(tmp_path):
    """As docs/faq.md says: the extra `ort`; a picture and a prompt at the command line, and what is said of the rest."""
    wheel, folder, pinned = build("wheel", tmp_path), tmp_path / "artifact", ("transformers", "tokenizers", "numpy", "onnxruntime")
    python = interpreter_with(tmp_path / "venv", f"lightvlm-fx[ort] @ {wheel.as_uri()}", *pinned)
    export = [sys.executable, "-m", "lightvlm_fx", "export", "--preset", "none", "--output", str(folder)]
    asked = ["-m", "lightvlm_fx", "run", str(folder), "--image", str(PICTURES / "1-crowd.png"), "--prompt", "how many objects are there ?"]

    def said(*command):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said(*export)
    assert said(python, *asked) == said(sys.executable, *asked)
    assert "True" not in said(python, "-c", "from importlib.util import find_spec; print(bool(find_spec('torch')))")
    done = subprocess.run([python, "-c", "from lightvlm_fx import compile"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr.endswith(f"ImportError: lightvlm_fx.compile {NO_TORCH}\n")


@pytest.mark.parametrize(("absent", "command", "said"), [
    ("torch", ("verify", "-m", "any"), f"this command {NO_TORCH}; run, inspect and verify without --model do without"),
    ("onnxruntime", ("verify",), "an artifact needs ONNX Runtime: pip install onnxruntime-gpu, or onnxruntime without a GPU"),
])  # fmt: skip
def test_a_command_says_which_package_it_lacks(bounded, absent, command, said):
    code = f"import sys; sys.modules[{absent!r}] = None; from lightvlm_fx.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, command[0], str(bounded), *command[1:]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (2, said)


def test_says_that_openvino_is_not_installed(broken):
    rewrite(broken, lambda found: found.update(target="openvino"))
    code = "import sys; sys.modules['openvino'] = None; from lightvlm_fx.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "verify", str(broken)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (2, "an artifact of target openvino needs OpenVINO: pip install openvino")
