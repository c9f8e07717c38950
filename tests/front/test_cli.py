"""The command line as a user meets it: output, files, and one clear message for each mistake."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

from lightvlm_fx import bundled
from lightvlm_fx.schedule import Schedule

PICTURE = str(bundled.PICTURES / "1-crowd.png")


def test_help_needs_no_torch():
    code = "import sys; sys.argv=['lightvlm','--help']\nfrom lightvlm_fx.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "bad = {'torch', 'transformers'} & set(sys.modules)\nassert not bad, bad"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "show", "bench", "eval", "explain", "presets"):
        assert command in done.stdout


def test_presets_lists_every_preset(run):
    code, text, _ = run("presets")
    assert code == 0
    for name in ("lightvlm", "fastv", "pyramiddrop", "random", "uniform", "none"):
        assert name in text


def test_explain_prints_the_table(run):
    code, text, _ = run("explain", "--keep", "0.03")
    assert code == 0
    assert "merge by density, keep 0.03" in text
    assert "ideal speed-up" in text


def test_explain_takes_a_schedule_file(run, tmp_path):
    Schedule.preset("fastv", layer=3, keep=25).save(tmp_path / "s.toml")
    code, text, _ = run("explain", "--schedule", str(tmp_path / "s.toml"))
    assert code == 0
    assert "keep 25" in text


def test_demo_answers_with_both_models(run):
    code, text, _ = run("demo", "--backend", "eager", PICTURE, "-q", "how many objects are there ?", "-q", "where is the red circle ?")
    assert code == 0
    assert text.count("full  ") == text.count("compiled  ") == 2
    assert "2 of 2 answers equal" in text
    assert "tokens per layer: 15" in text


def test_show_draws_one_panel_a_stage(run, tmp_path):
    code, text, _ = run("show", PICTURE, "-q", "where is the red circle ?", "-o", str(tmp_path / "new" / "s.png"), "--keep", "0.03")
    assert code == 0
    assert "wrote" in text
    with Image.open(tmp_path / "new" / "s.png") as sheet:
        assert sheet.width > 4 * 384


def test_show_draws_pruning_too(run, tmp_path):
    assert run("show", PICTURE, "-p", "fastv", "--keep", "0.1", "-o", str(tmp_path / "s.png"))[0] == 0
    with Image.open(tmp_path / "s.png") as sheet:
        assert 2 * 384 < sheet.width < 3 * 384


def test_eval_compares_with_baselines(run):
    code, text, _ = run("eval", "--samples", "4", "--keep", "0.35", "--kind", "where")
    assert code == 0
    for row in ("full model", "lightvlm @ 0.35", "random + prune @ 0.35", "uniform + merge @ 0.35"):
        assert row in text


def test_eval_tells_drift_at_equal_caches(run):
    words = ("--samples", "2", "--kind", "describe", "--drift", "--capacity", "40", "-p", "h2o:recent=8", "-p", "lightvlm")
    code, text, _ = run("eval", *words)
    assert code == 0
    for part in ("drift from the full model, nats an answer", "h2o:recent=8, cache 40", "lightvlm, cache 40", "describe: places", "±"):
        assert part in text


def test_eval_tells_what_a_second_question_still_finds(run):
    code, text, _ = run("eval", "--samples", "3", "--turns", "--capacity", "0.5", "-p", "sparsevila:keep=1.0")
    assert code == 0
    for part in ("two questions over one cache, 3 held-out dialogues", "full model", "sparsevila:keep=1.0, cache 0.5"):
        assert part in text


def test_a_preset_takes_options_on_the_command_line(run):
    code, text, _ = run("explain", "-p", "lightvlm:capacity=96:layers=2,5,7", "--keep", "0.35")
    assert code == 0
    assert "96 entries a layer by attention" in text


def test_bench_prints_ratios(run):
    code, text, _ = run("bench", "prefill", "--shape", "tiny", "--backend", "eager", "--repeats", "2", "--dtype", "float32")
    assert code == 0
    for part in ("full model, eager", "full model, compiled", "lightvlm @ 0.35", "FLOP-ideal", "torch 2."):
        assert part in text


@pytest.mark.since(5, 23)  # before, transformers' exporter writes other components
def test_bench_first_tells_what_a_new_process_takes(run):
    code, text, _ = run("bench", "first", "--shape", "tiny", "--backend", "eager", "--layers", "4", "--dtype", "float32")
    assert code == 0
    assert [word in text for word in ("empty", "full", "prefill", "decode")] == [True] * 4


@pytest.mark.heavy  # compiles four graphs with inductor
def test_bench_size_compares_two_graphs(run):
    code, text, _ = run("bench", "size", "--shape", "tiny", "--layers", "2", "--repeats", "1", "-p", "fastv:layer=1", "--dtype", "float32")
    assert code == 0
    assert "every size / this size: prefill" in text


def test_bench_memory_compares_peaks(run, monkeypatch):
    from lightvlm_fx import bench_memory

    monkeypatch.setattr(bench_memory, "apart", lambda tokens, schedule, backend, repeats: bench_memory.measure(tokens, schedule, backend))
    code, text, _ = run("bench", "memory", "--tokens", "72")
    assert code == 0
    assert "prefill of one video" in text
    assert "72" in text


def test_bench_artifact_prints_ratios(run, monkeypatch):
    monkeypatch.setattr("lightvlm_fx.bench_artifact.SPINNING", 0)  # not a measurement
    code, text, _ = run("bench", "artifact", "--shape", "tiny", "--layers", "2", "--repeats", "1", "-p", "fastv:layer=1", "--text", "9")
    assert code == 0
    measured = ("prefill", "step behind 4096 tokens", "steps of an answer of 1024", "by FLOPs", "weight file", "resident", "greedy tokens")
    for part in (*measured, "torch 2."):
        assert part in text


def test_bench_answer_watches_one_long_answer(run):
    words = ("--shape", "tiny", "--backend", "eager", "--length", "800", "--dtype", "float32", "-p", "lightvlm:capacity=40")
    code, text, _ = run("bench", "answer", *words)
    assert code == 0
    for part in ("600 to 800", "behind token 600: a step", "0 recompiles", "choosing victims takes", "% of it", "torch 2."):
        assert part in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("demo", "no-such.png"), "no-such.png: no such file; give the path of a picture"),
        (("demo", __file__), "not a picture that Pillow can read"),
        (("show", __file__), "not a picture that Pillow can read"),
        (("explain", "--preset", "lightvml"), "no preset named 'lightvml'; did you mean 'lightvlm'?"),
        (("explain", "--preset", "h2o:capacity"), "h2o:capacity: an option of a preset is written name=value, got 'capacity'"),
        (("explain", "--keep", "1.5"), "keep as a ratio must be in (0, 1], got 1.5"),
        (("explain", "--keep", "much"), "keep must be a ratio in (0, 1] or a count of tokens, got 'much'"),
        (("explain", "--schedule", "missing.toml"), "missing.toml: not a readable schedule file"),
        (("explain", "--model", "./no-model"), "there is no folder ./no-model; give one that save_pretrained wrote, or a hub name"),
        (("export", "models/of/mine"), "there is no folder models/of/mine"),
        (("export", str(bundled.PICTURES)), f"no image-text-to-text model and processor from {bundled.PICTURES}: Unrecognized model in"),
        (("bench", "prefill", "--shape", "0.5"), "no shape named '0.5'; did you mean '0.5b'?"),
        (("bench", "answer", "--length", "99"), "an answer must have 800 tokens and more to be judged behind its 600th, got 99"),
        (("bench", "answer", "--shape", "tiny", "-p", "snapkv"), "schedule 'snapkv' does not hold its cache to a fixed size while"),
        (("show", PICTURE, "-p", "none", "--keep", "1"), "no option of preset 'none' named 'keep'"),
    ],
)
def test_refuses_with_one_clear_message(run, words, message):
    code, _, text = run(*words)
    assert code == 2
    assert message in text
    assert "Traceback" not in text
