"""docs/pipelines.md does what it says: its schedule, make rule, CI job and Python call are run as they stand."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightvlm_fx import bundled

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S))


def run(command, folder):
    here = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(["bash", "-ec", command], cwd=folder, env=os.environ | here, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(bundled.HOME, folder / "model")
    shutil.copy(sorted(bundled.PICTURES.glob("*.png"))[0], folder / "picture.png")
    (folder / "schedule.toml").write_text(BLOCKS["toml"], encoding="utf-8")
    (folder / "Makefile").write_text(BLOCKS["make"], encoding="utf-8")
    return folder


def test_the_ci_job_runs(folder):
    steps = yaml.safe_load(BLOCKS["yaml"])["jobs"]["build"]["steps"]
    assert steps[0]["name"] == "install"  # the one step that this environment went through already
    for step in steps[1:]:
        run(step["run"], folder)
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["ok"]
    assert verdict["source"]["tokens_equal"]
    assert json.loads((folder / "report.json").read_text())["buckets"][0]["cache_slots"] == [96] * 8
    assert json.loads((folder / "answer.json").read_text())["answer"]
    assert (folder / "artifact.tar").stat().st_size > 1 << 20
    assert "is up to date" in run("make artifact/lightvlm.json", folder)


def test_the_python_call_runs(folder):
    assert '"tokens_equal": true' in run(f"python - <<'END'\n{BLOCKS['python']}\nEND", folder)
