"""torchao, installed in a folder of its own: transformers imports it wherever it is, and it prints at every start of a command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CASES = ("parity/test_torchao.py", "front/test_cli.py::test_bench_peers_measures_what_is_installed")


@pytest.mark.full
def test_with_torchao(tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), "torchao==0.18.0"]
    subprocess.run(pip, capture_output=True, text=True, check=True)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    call = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider", *(str(TESTS / case) for case in CASES),
            "-k", "torchao or int8"]  # fmt: skip
    done = subprocess.run(call, cwd=TESTS.parent, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout.splitlines()[-1]
