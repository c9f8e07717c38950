"""What `pip install` gets: every file of the package, its data, its licence; and what the source distribution adds."""

import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser

import pytest
from built import ROOT, build

import lightvlm_fx

PACKAGE = ROOT / "lightvlm_fx"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("package")


@pytest.fixture(scope="module")
def wheel(scratch):
    with zipfile.ZipFile(build("wheel", scratch)) as file:
        yield file


@pytest.fixture(scope="module")
def source(scratch):
    """Names of the files in the source distribution, without its folder's own."""
    with tarfile.open(build("sdist", scratch)) as file:
        return {member.name.partition("/")[2] for member in file if not member.isdir()}


def files(folder, *patterns):
    """Files below `folder`, links followed, as the package names them."""
    found = (p for pattern in patterns for top in (folder, folder / "passes", folder / "exporters") for p in top.rglob(pattern))
    return {p.relative_to(folder.parent).as_posix() for p in found if p.is_file() and "__pycache__" not in p.parts}


def test_the_wheel_holds_every_module_and_all_data(wheel):
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == files(PACKAGE, "*.py", "py.typed", "bundled/model/*", "bundled/pictures/*")
    assert {"lightvlm_fx/py.typed", "lightvlm_fx/passes/reduce_tokens.py", "lightvlm_fx/bundled/model/model.safetensors"} <= held


def test_the_wheel_says_what_it_is(wheel):
    [name] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    said = HeaderParser().parsestr(wheel.read(name).decode())
    assert (said["Name"], said["Version"], said["License-Expression"]) == ("lightvlm-fx", lightvlm_fx.__version__, "Apache-2.0")
    assert set(said.get_all("License-File")) == {"LICENSE", "NOTICE"}
    for licence in ("LICENSE", "NOTICE"):
        assert wheel.read(name.replace("METADATA", f"licenses/{licence}")) == (ROOT / licence).read_bytes()
    assert "Typing :: Typed" in said.get_all("Classifier")
    needs = [re.split(r"[<>;]", need, maxsplit=1)[0] for need in said.get_all("Requires-Dist") if "extra ==" not in need]
    assert {"transformers", "numpy"} <= set(needs)
    assert "torch" not in needs  # its build is the user's choice, and running artifacts needs none
    commands = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "lightvlm = lightvlm_fx.cli.main:main" in commands


def test_the_source_distribution_holds_tests_docs_and_what_they_read(source):
    for name in ("NOTICE", "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "requirements-tested.txt",
                 "docs/pipelines.md", "docs/show.png", "docs/decisions/0008-artifacts.md", "tests/conftest.py", "tests/built.py",
                 "passes/reduce_tokens.py", "exporters/towers.py", "lightvlm_fx/passes/reduce_tokens.py"):  # fmt: skip
        assert name in source
    wanted = {p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("*.py")} | files(PACKAGE, "*.py")
    assert wanted <= source
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / "tests" / "golden").rglob("*.txt")} <= source
    assert not [name for name in source if "__pycache__" in name or name.endswith(".pyc")]


def test_make_takes_the_first_python_there_is(tmp_path):
    """Of 3.11 to 3.13; a name that does not run (a shim without a version behind it) is none."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    for name, code in (("python3.11", 127), ("python3.12", 0), ("python3.13", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    call = [make, "--no-print-directory", "-C", str(ROOT), "--eval", "which-python: ; @echo $(PYTHON)", "which-python"]
    done = subprocess.run(call, capture_output=True, text=True, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert done.stdout.strip() == "python3.12"


def test_extras_name_what_docs_say():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"onnx", "onnx-cpu", "openvino", "tensorrt", "eval", "dev"} <= set(extras)
    assert any(need.startswith("scikit-learn") for need in extras["eval"])
