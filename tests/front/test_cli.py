"""The command line as a user meets it: output, files, and one clear message for each mistake."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.padding import Padding
from rich.table import Table
from transformers import AutoProcessor

import lightvlm_fx
from lightvlm_fx import bundled
from lightvlm_fx.bundled.scenes import digit_scans
from lightvlm_fx.cli.base import Console, plain, telling
from lightvlm_fx.errors import InputError
from lightvlm_fx.pictures import inputs_of, open_picture
from lightvlm_fx.presets import PRESETS
from lightvlm_fx.schedule import Schedule

PICTURE = str(bundled.PICTURES / "1-crowd.png")


def test_help_needs_no_torch():
    code = "import sys; sys.argv=['lightvlm','--help']\nfrom lightvlm_fx.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
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


def test_presets_reads_as_text(run):
    """Paragraphs, not docstrings with the line ends and the indentation of their file."""
    _, text, _ = run("presets")
    cells = [line.split("│")[2].strip(" ") for line in text.splitlines() if line.count("│") == 4]
    assert cells
    assert not [cell for cell in cells if "    " in cell]
    words = " ".join(" ".join(cells).split())
    for make in PRESETS.values():
        assert " ".join(make.__doc__.split()) in words


@pytest.mark.parametrize("command", [["lightvlm_fx"], ["lightvlm_fx.cli.main"]])
def test_says_its_version_without_torch(command):
    code = f"import runpy, sys; sys.argv = ['lightvlm', '--version']; runpy.run_module({command[0]!r}, run_name='__main__')"
    code = f"import sys; sys.modules['torch'] = None; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"lightvlm_fx {lightvlm_fx.__version__}", "")


def test_eval_says_what_to_install(run, monkeypatch):
    """After a plain install there is no scikit-learn."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digit_scans.cache_clear()
    code, _, said = run("eval", "--samples", "1")
    assert code == 2
    assert said.strip().endswith("pip install scikit-learn (or lightvlm-fx[eval])")
    assert "Traceback" not in said


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
    code, text, _ = run("eval", "--samples", "4", "--keep", "0.35", "--kind", "where", "-p", "lightvlm", "-p", "downsample:side=0.75")
    assert code == 0
    for row in ("full model", "lightvlm @ 0.35", "random + prune @ 0.35", "uniform + merge @ 0.35", "downsample:side=0.75"):
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
    for part in ("prefill from pixels", "full model, eager", "full model, compiled", "lightvlm @ 0.35", "FLOP-ideal", "torch 2."):
        assert part in text


def test_reduction_counts_operators_within_operators_once_and_no_packed_products(capfd):
    from lightvlm_fx.bench.prefill import reduction_share
    from lightvlm_fx.methods.entry_merges.counted import Counted
    from lightvlm_fx.methods.operators import operator
    from lightvlm_fx.ops.packed_linear import packed_linear

    keys, segment, index = torch.randn(1, 2, 512, 32), torch.zeros(1, 512, dtype=torch.int64), torch.arange(256).view(1, 1, -1)
    went = operator(Counted, "went")  # calls nearest_survivor
    assert 0.3 < reduction_share(lambda: [went(keys, keys, segment, index, index) for _ in range(20)], "cpu") < 1
    assert reduction_share(lambda: packed_linear(keys, keys[0, 0]), "cpu") == 0
    assert not capfd.readouterr().err


def test_bench_prefill_of_a_video(run):
    """`dycoke` leaves still pictures whole: its ideal says that frames were cut."""
    words = ("bench", "prefill", "--shape", "tiny", "--backend", "eager", "--repeats", "1", "--dtype", "float32", "--frames")
    code, text, _ = run(*words, "4", "-p", "dycoke", "-p", "fastvid:keep=0.5")
    assert code == 0
    assert "64 visual tokens in a video of 4 frames" in text
    for name in ("dycoke", "fastvid:keep=0.5"):
        (row,) = [line.split("│") for line in text.splitlines() if line.startswith(f"│ {name} ")]
        assert float(row[3]) > 1
    code, _, error = run(*words, "5")
    assert (code, "frames=5 does not divide the shape's 64 visual tokens" in error) == (2, True)
    code, _, error = run(*words, "4", "--tower", "clip-l")
    assert (code, "frames=4 goes with tower='toy' alone" in error) == (2, True)


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
    from lightvlm_fx.bench import memory as bench_memory

    monkeypatch.setattr(bench_memory, "apart", lambda tokens, schedule, backend, repeats: bench_memory.measure(tokens, schedule, backend))
    code, text, _ = run("bench", "memory", "--tokens", "72")
    assert code == 0
    assert "prefill of one video" in text
    assert "72" in text


def test_bench_cache_compares_with_the_source(run, monkeypatch):
    from lightvlm_fx.bench import cache as bench_cache
    from lightvlm_fx.bench import prefill as bench

    monkeypatch.setattr(bench_cache, "SHAPE", bench.shape("tiny", None))
    monkeypatch.setattr(bench_cache, "apart", lambda name, schedule, text, new_tokens: bench_cache.measure(
        name, schedule and schedule.model_dump_json(), text, new_tokens))  # fmt: skip
    code, text, _ = run("bench", "cache", "--length", "2", "-p", "none")
    assert code == 0
    assert [line.split()[1] for line in text.splitlines() if line.startswith("│")] == ["source", "none"]


@pytest.mark.since(5, 23)
def test_bench_artifact_prints_ratios(run, monkeypatch):
    monkeypatch.setattr("lightvlm_fx.bench.artifact.SPINNING", 0)  # not a measurement
    code, text, _ = run("bench", "artifact", "--shape", "tiny", "--layers", "2", "--repeats", "1", "-p", "fastv:layer=1", "--text", "9")
    assert code == 0
    measured = ("prefill", "step after 4096 tokens", "steps of an answer of 1024", "by FLOPs", "weight file", "resident", "greedy tokens")
    for part in (*measured, "torch 2."):
        assert part in text


@pytest.mark.since(5, 23)
def test_bench_artifact_compares_precisions_of_weights(run, monkeypatch):
    monkeypatch.setattr("lightvlm_fx.bench.artifact.SPINNING", 0)
    words = ("--shape", "tiny", "--layers", "2", "--repeats", "1", "-p", "none", "--text", "9")
    code, text, _ = run("bench", "artifact", *words, "--weights", "float32", "--weights", "int4")
    assert code == 0
    for part in ("artifact, float32", "artifact, int4", "against float32: prefill"):
        assert part in text


@pytest.mark.since(5, 23)
@pytest.mark.parametrize(("dtype", "engines", "said"), [
    ("float32", ("torch", "onnxruntime", "openvino"),
     ["eager", "StaticCache", "ours, none", "packed", "export", "ours", "export", "optimum", "ours"]),
    ("bfloat16", ("onnxruntime", "openvino"), ["has no bfloat16 kernels", "export", "optimum", "ours"]),
    ("int4", ("onnxruntime",), ["ours, none, float32 weights", "ours, none"]),
    ("int8", ("torch",), ["eager", "ours, none, float32", "ours, none"]),
])  # fmt: skip
def test_bench_peers_measures_what_is_installed(run, monkeypatch, tmp_path, dtype, engines, said):
    monkeypatch.setattr("lightvlm_fx.bench.artifact.SPINNING", 0)
    for name in set(engines) & {"openvino"} | ({"torchao"} if (dtype, engines) == ("int8", ("torch",)) else set()):
        pytest.importorskip(name)
    monkeypatch.setattr("lightvlm_fx.bench.peers.limits", lambda dtype: (1.0, 1.0))
    words = ["--shape", "tiny", "--layers", "2", "--repeats", "1", "--text", "9", "--length", "4", "-p", "none", "--work", str(tmp_path)]
    code, text, _ = run("bench", "peers", *words, "--dtype", dtype, *(word for name in engines for word in ("--engine", name)))
    assert code == 0
    rows = [line for line in text.splitlines() if re.match(r"│ \S", line)]  # cells may go on in a line without a name
    assert len(rows) == len(said) + ("openvino" in engines)
    for row, part in zip(rows, said, strict=False):
        assert part in row
    assert ("GenAI" in rows[-1]) == ("openvino" in engines)
    assert "nan" not in text


def test_bench_answer_watches_one_long_answer(run):
    words = ("--shape", "tiny", "--backend", "eager", "--length", "800", "--dtype", "float32", "-p", "lightvlm:capacity=40")
    code, text, _ = run("bench", "answer", *words)
    assert code == 0
    for part in ("600 to 800", "after token 600: a step", "0 recompiles", "choosing victims takes", "% of it", "torch 2."):
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
        (("bench", "peers", "--shape", "tiny", "--dtype", "half"), "no precision named 'half'"),
        (("bench", "peers", "--shape", "tiny", "--engine", "tvm"), "no engine named 'tvm'"),
        (("bench", "prefill", "--shape", "0.5"), "no shape named '0.5'; did you mean '0.5b'?"),
        (("bench", "answer", "--length", "99"), "an answer must have 800 tokens and more to be judged after its 600th, got 99"),
        (("bench", "answer", "--shape", "tiny", "-p", "snapkv"), "schedule 'snapkv' does not hold its cache to a fixed size while"),
        (("eval", "--turns", "--drift"), "--turns and --drift are tables of their own"),
        (("show", PICTURE, "-p", "none", "--keep", "1"), "no option of preset 'none' named 'keep'"),
    ],
)
def test_refuses_with_one_clear_message(run, words, message):
    code, _, text = run(*words)
    assert code == 2
    assert message in text
    assert "Traceback" not in text


# --- other people's text on the terminal ------------------------------------------------------------------


def test_show_prints_the_question_as_it_is(run, tmp_path):
    question = "is there a [/red] [bold]thing[/] :smile: [link=x]?"
    code, text, _ = run("show", PICTURE, "-q", question, "-o", str(tmp_path / "s.png"))
    assert code == 0
    assert f"{question} -> " in text


def test_demo_prints_names_and_questions_as_they_are(run, tmp_path):
    odd = tmp_path / "[red][bold]\x1b[31m.png"
    shutil.copy(PICTURE, odd)
    code, text, _ = run("demo", "--backend", "eager", str(odd), "-q", "is [/cyan] \x1b[2J [i]there[/i] ?")
    assert code == 0
    assert "[red][bold]\\x1b[31m.png" in text
    assert "is [/cyan] \\x1b[2J [i]there[/i] ?" in text


@pytest.mark.parametrize("words", [
    ("demo", "\x1b[31m[/red].png"), ("explain", "--preset", "\x1b[31m[/red]"), ("explain", "--schedule", "\x1b[31m[/red]"),
    ("explain", "--model", "./\x1b[31m[/red]"), ("verify", "\x1b[31m[/red]"), ("inspect", "\x1b[31m[/red]"), ("run", "\x1b[31m[/red]"),
])  # fmt: skip
def test_messages_show_escapes_and_brackets_as_text(run, words):
    code, out, text = run(*words)
    assert code == 2
    assert "\x1b" not in out + text
    assert "x1b[31m[/red]" in text


@given(st.text(st.characters() | st.characters(categories=["Cs", "Cc"]) | st.sampled_from("[]:/\\")))
def test_whatever_is_printed_leaves_the_terminal_alone(text):
    screen = io.StringIO()
    console = Console(file=screen, width=10**6, force_terminal=False)
    table = Table("a", title=text)
    table.add_row(text)
    for thing in (text, table, Padding(text, 1)):
        console.print(thing)
    said = screen.getvalue()
    said.encode()
    assert not set(said) & set(map(chr, [*range(9), *range(11, 32), *range(127, 160), 0x202E]))
    assert plain(plain(text)) == plain(text)
    if text.isascii() and text.isprintable() and text.strip() == text:
        assert text in said


def test_the_status_line_reads_no_markup():
    with Console(file=io.StringIO()).status("waiting") as status:
        telling(status)("is [/red] \x1b[31m there")
        assert str(status.renderable.text) == "is [/red] \\x1b[31m there"


# --- exit codes -------------------------------------------------------------------------------------------


def test_what_nobody_foresaw_exits_with_a_code_of_its_own(run, monkeypatch):
    """Python's own is 1, which `verify` says of changed files."""
    monkeypatch.setattr("lightvlm_fx.cli.main.schedule_of", lambda *_: 1 / 0)
    code, _, text = run("explain")
    assert code == 70
    assert "ZeroDivisionError" in text
    assert "this is a defect of lightvlm_fx" in text


def test_a_file_that_cannot_be_written_is_one_line(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "s.png")

    monkeypatch.setattr("lightvlm_fx.cli.main.schedule_of", full)
    code, _, text = run("explain")
    assert (code, text.strip()) == (2, "[Errno 28] No space left on device: 's.png'")


@pytest.mark.parametrize(("words", "message"), [
    (("show", PICTURE, "-q", "what is <image> ?"), "does not take the question 'what is <image> ?' with 1 pictures"),
    (("demo", PICTURE, "-q", "<image>"), "leave placeholders such as <image> out of the question"),
    (("bench", "prefill", "--shape", "tiny", "--dtype", "nn"), "no dtype named 'nn'"),
    (("bench", "prefill", "--shape", "tiny", "--repeats", "0"), "repeats"),
    (("bench", "decode", "--shape", "tiny", "--layers", "0"), "layers"),
    (("eval", "--samples", "0"), "samples"),
    (("export", "--rows", "-1"), "rows"),
    (("explain", "-p", "h2o:name=1"), "no option of preset 'h2o' named 'name'"),
    (("explain", "-p", "h2o:sinks=1:sinks=2"), "option sinks is given twice"),
])  # fmt: skip
def test_refuses_what_ended_in_a_traceback(run, words, message):
    code, _, text = run(*words)
    assert code == 2
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize("pictures", [0, 1])
def test_a_placeholder_in_the_question_of_an_artifact_is_refused(pictures):
    """What `run` asks the processor that stands in the folder."""
    processor = AutoProcessor.from_pretrained(bundled.HOME)
    with pytest.raises(InputError, match=f"does not take the question '<image>' with {pictures} pictures"):
        inputs_of(processor, "<image>", [open_picture(PICTURE)] * pictures, "np")
