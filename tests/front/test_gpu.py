"""`lightvlm bench gpu` on a processor, at a tiny shape: what `make gpu` does where there is no GPU."""

import json
import time

import pytest
import torch

from lightvlm_fx.bench import gpu
from lightvlm_fx.bench.gpu_parts import Found, Kit, Table, case, parts
from lightvlm_fx.bench.reads import watched
from lightvlm_fx.errors import InputError

TINY = Kit(device="cpu", shapes=("tiny",), families=("llava",), backend="eager", dtype="float32", repeats=1,
           lengths=(4,), capacity=48)  # fmt: skip


@pytest.mark.parametrize("name", parts(TINY))
def test_every_part_on_a_processor(name, tmp_path):
    (result,) = gpu.run(TINY, [name], folder=tmp_path, apart=False)
    assert (result.verdict, result.said) == ("passed", [])
    assert all(len(row) == len(table.columns) for table in result.tables for row in table.rows)
    assert all(table.rows for table in result.tables)
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"][0]["part"] == name
    assert f"## {name}: passed" in (tmp_path / "gpu.md").read_text()


def test_the_command_with_inductor(run, tmp_path):
    """Every part in a process of its own."""
    code, text, _ = run("bench", "gpu", "--device", "cpu", "--part", "steps", "--part", "tables", "--repeats", "1", "-o", str(tmp_path))
    assert code == 0
    assert "steps: passed" in text
    assert "tables tiny: passed" in text
    assert "| llava | none |" in (tmp_path / "gpu.md").read_text()


FAILING = {
    "good": lambda kit: Found([Table("t", ("a", "b"), [("1", "2")])]), "bad": lambda kit: 1 / 0,
    "wrong": lambda kit: Found([Table("t", ("a",), [("kept",)])], ["it is wrong"]), "absent": lambda kit: Found(skipped="no such thing"),
}  # fmt: skip


@pytest.fixture
def failing(monkeypatch):
    monkeypatch.setattr(gpu, "parts", lambda kit: FAILING)


def test_one_failure_does_not_lose_the_rest(failing, tmp_path):
    results = gpu.run(TINY, folder=tmp_path, apart=False)
    assert [r.verdict for r in results] == ["passed", "failed", "failed", "skipped"]
    assert [r.good for r in results] == [True, False, False, True]
    text = (tmp_path / "gpu.md").read_text()
    for part in ("| 1 | 2 |", "ZeroDivisionError", "it is wrong", "| kept |", "no such thing"):
        assert part in text
    assert [p["verdict"] for p in json.loads((tmp_path / "gpu.json").read_text())["parts"]] == [r.verdict for r in results]


def test_one_case_does_not_lose_the_others():
    wrong = []
    for divisor in (1, 0, 2):
        with case(wrong, f"by {divisor}"):
            1 / divisor
    assert [line.split(" in ")[0] for line in wrong] == ["by 0: ZeroDivisionError"]


def test_the_exit_code_says_that_something_failed(failing, run, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "_apart", lambda kit, name, seconds, folder: gpu._here(kit, name))
    words = ("bench", "gpu", "--device", "cpu", "-o", str(tmp_path))
    assert run(*words)[0] == 1
    assert run(*words, "--part", "good")[0] == 0


def test_parts_for_which_no_time_is_left_are_not_run(failing, tmp_path):
    results = gpu.run(TINY, ["good"], minutes=0.1, folder=tmp_path)
    assert [(r.verdict, r.good) for r in results] == [("not run", False)]


def test_a_part_that_dies_or_hangs_is_told(monkeypatch, tmp_path):
    start = time.monotonic()
    late = gpu._apart(TINY, "steps", 0.2, tmp_path)
    assert (late.verdict, late.said) == ("failed", ["ended after 0 s: the time was over"])
    assert time.monotonic() - start < 10
    monkeypatch.setattr(gpu.sys, "executable", "false")
    dead = gpu._apart(TINY, "steps", 20, tmp_path)
    assert (dead.verdict, dead.said) == ("failed", ["its process ended with 1: "])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_to_do():
    with pytest.raises(InputError, match="DEVICE=cpu"):
        gpu.run(Kit())


def test_what_a_processor_is_asked_for_is_seen():
    with watched("cpu") as found:
        torch.ones(2).nonzero()
    assert found == ["nonzero"]
