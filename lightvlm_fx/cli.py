"""The command line. Torch is imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lightvlm_fx.cli_base import (
    Backend,
    Console,
    File,
    Keep,
    Layers,
    Model,
    Preset,
    Prompt,
    Some,
    app,
    bench,
    dtype_of,
    err,
    load_model,
    number,
    out,
    plain,
    preset_of,
    schedule_of,
    telling,
)
from lightvlm_fx.errors import LightVLMError
from lightvlm_fx.schedule import Schedule

DEFECT = 70  # exit code, EX_SOFTWARE of sysexits.h


@app.command()
def presets() -> None:
    """List the presets, their options and what they do."""
    import inspect

    from lightvlm_fx.presets import PRESETS

    table = Table("preset", "what it is", "options and defaults")
    for name, make in PRESETS.items():
        options = ", ".join(f"{p.name}={p.default!r}" for p in inspect.signature(make).parameters.values())
        table.add_row(name, (make.__doc__ or "").strip(), options)
    out.print(table)


@app.command()
def explain(
    preset: Preset = "lightvlm", keep: Annotated[str | None, typer.Option(help="Ratio or count.")] = None,
    file: File = None, model: Model = None,
) -> None:  # fmt: skip
    """What a schedule will do to a model: tokens per layer, FLOPs, KV bytes. Runs nothing."""
    import lightvlm_fx as lightvlm

    out.print(str(lightvlm.explain(load_model(model)[0], schedule_of(preset, keep, file))))


@app.command()
def demo(
    pictures: Annotated[list[Path] | None, typer.Argument(help="Your pictures (default: the bundled ones).")] = None,
    question: Annotated[list[str] | None, typer.Option("--question", "-q", help="Question; may be repeated.")] = None,
    preset: Preset = "lightvlm", keep: Annotated[str | None, typer.Option(help="Ratio or count (default: the preset's).")] = None,
    file: File = None, model: Model = None, backend: Backend = "inductor",
) -> None:  # fmt: skip
    """Ask the full and the compiled model the same questions; show answers, tokens per layer and time."""
    from lightvlm_fx.pictures import open_picture

    schedule = schedule_of(preset, keep, file)
    opened = [(p.name, open_picture(p), question or ["describe the picture ."]) for p in pictures or []]
    with err.status("loading the model") as status:
        import lightvlm_fx as lightvlm
        from lightvlm_fx import demo as program

        source, processor = load_model(model)
        items = opened or [(p.stem, open_picture(p), question or asked) for p, asked in program.bundled()]
        out.print(str(lightvlm.explain(source, schedule)))
        fast = lightvlm.compile(source, schedule, backend=backend)
        answers: list[program.Answer] = []
        for a in program.run(source, fast, processor, items, telling(status)):
            if not answers or answers[-1].picture != a.picture:
                out.print(f"\n{a.picture}", style="bold")
            out.print(f"  {a.question}", style="cyan")
            out.print(Padding(f"full      {a.full_s * 1e3:6.0f} ms  {a.full}", (0, 0, 0, 4)))
            colour = "green" if a.compiled == a.full else "red"
            out.print(Padding(Text.assemble(f"compiled  {a.compiled_s * 1e3:6.0f} ms  ", (plain(a.compiled), colour)), (0, 0, 0, 4)))
            answers.append(a)
    equal = sum(a.full == a.compiled for a in answers)
    tokens = " ".join(map(str, answers[-1].tokens_per_layer))
    out.print(f"\n{equal} of {len(answers)} answers equal; tokens per layer: {tokens}")
    out.print("(this model is so small that its time is mostly Python; `lightvlm bench prefill` measures real shapes)")


@app.command()
def show(
    picture: Annotated[Path, typer.Argument(help="A picture.")],
    question: Annotated[str, typer.Option("--question", "-q", help="The question that guides the choice.")] = "describe the picture .",
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.")] = Path("lightvlm-show.png"),
    preset: Preset = "lightvlm", keep: Keep = "0.03", file: File = None, model: Model = None,
) -> None:  # fmt: skip
    """Draw which patches survive, and which were merged into which, stage by stage."""
    from lightvlm_fx.pictures import open_picture

    opened, schedule = open_picture(picture), schedule_of(preset, keep, file)
    if not schedule.cuts:
        raise LightVLMError(f"schedule {schedule.name!r} reduces nothing, so there is nothing to show")
    import lightvlm_fx as lightvlm
    from lightvlm_fx import show as painter
    from lightvlm_fx.demo import ask

    source, processor = load_model(model)
    fast = lightvlm.compile(source, schedule, backend="eager")
    text, _ = ask(fast, processor, opened, question)
    output.parent.mkdir(parents=True, exist_ok=True)
    painter.draw(fast, opened).save(output)
    out.print(f"{question} -> {text}")
    out.print(f"wrote {output}")


@app.command("eval")
def evaluate(
    keep: Annotated[list[float] | None, typer.Option(help="Keep ratio; may be repeated.")] = None,
    capacity: Annotated[list[str] | None, typer.Option(help="Cache: share of the prompt, or count; may be repeated.")] = None,
    preset: Annotated[list[str] | None, typer.Option("--preset", "-p", help="Preset, or as snapkv:window=8; may be repeated.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Held-out questions of each kind.")] = 100,
    kind: Annotated[list[str] | None, typer.Option(help="Kind of question; may be repeated (default: all).")] = None,
    seed: Annotated[int, typer.Option(help="Of the scenes; 8000000 was used for choosing.")] = 7_000_000,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help="Option of every preset, e.g. score=peak.")] = None,
    baselines: Annotated[bool, typer.Option(help="Also random and uniform at equal visual tokens.")] = True,
    drift: Annotated[bool, typer.Option(help="How far predictions move, in nats an answer, in place of exact match.")] = False,
    turns: Annotated[bool, typer.Option(help="Dialogues of two short questions over one cache, in place of exact match.")] = False,
    artifact: Annotated[list[Path] | None, typer.Option(help="Artifact of the bundled model, beside the compiled one; repeatable.")] = None,
) -> None:
    """Accuracy of the bundled model on held-out scenes: full, under the preset, and under baselines."""
    from rich.progress import Progress

    from lightvlm_fx import dialogues
    from lightvlm_fx import drift as drifting
    from lightvlm_fx import evaluate as program

    kinds = tuple(kind or program.KINDS)
    if artifact:
        Console(width=max(out.width, 140)).print(_artifact_table(artifact, samples, kinds, seed))
        return
    schedules: dict[str, Schedule] = {}
    for share in capacity or []:
        for given in preset or ["lightvlm"]:
            schedules[f"{given}, cache {share}"] = preset_of(given, option or [], capacity=number(share))
    for ratio in [] if capacity else keep or [0.35, 0.03]:
        for given in preset or ["lightvlm"]:
            schedules[f"{given} @ {ratio:g}"] = schedule = preset_of(given, option or [], keep=ratio)
        if baselines:
            schedules |= {f"{name} @ {ratio:g}": s for name, s in program.baselines(schedule, ratio).items()}
    with Progress(console=err) as progress:
        total = samples * (1 if turns else len(kinds))
        tasks = {name: progress.add_task(escape(plain(name)), total=total) for name in ["full model", *schedules]}

        def tick(name: str, n: int) -> None:
            progress.update(tasks[name], advance=n)

        if turns:
            table = _turns_table(dialogues.run(schedules, samples, seed=seed, tick=tick))
        elif drift:
            table = _drift_table(drifting.run(schedules, samples, kinds=kinds, seed=seed, tick=tick))
        else:
            table = _score_table(program.run(schedules, samples, kinds=kinds, seed=seed, tick=tick), schedules)
    table.title = f"{table.title}, {samples} held-out {'dialogues' if turns else 'questions a kind'}"
    Console(width=max(out.width, 140)).print(table)


def _score_table(scores: list[Any], schedules: dict[str, Schedule]) -> Table:
    from lightvlm_fx.evaluate import mean_visual_tokens

    full = scores[0]
    table = Table("schedule", "mean visual tokens", "of full", *full.right, "things placed", title="exact match")
    for score in scores:
        tokens = mean_visual_tokens(schedules[score.name], 144, 8) if score.name in schedules else 144.0
        table.add_row(score.name, f"{tokens:.1f}", f"{score.accuracy() / full.accuracy():.3f}",
                      *(f"{score.accuracy(kind):.3f}" for kind in full.right), f"{score.grounding:.3f}")  # fmt: skip
    return table


def _artifact_table(folders: list[Path], samples: int, kinds: tuple[str, ...], seed: int) -> Table:
    from lightvlm_fx.evaluate_artifact import run

    scores = run(folders, samples, kinds=kinds, seed=seed, tick=lambda name, n: None)
    table = Table("artifact", *kinds, "mean", "compiled model's mean", "same tokens as the compiled model",
                  title=f"exact match on {scores[0].questions} held-out questions")  # fmt: skip
    for score in scores:
        mean = sum(score.right.values()) / len(score.right)
        table.add_row(score.name, *(f"{share:.3f}" for share in score.right.values()), f"{mean:.3f}", f"{score.compiled_right:.3f}",
                      f"{score.identical:.3f}")  # fmt: skip
    return table


def _turns_table(scores: list[Any]) -> Table:
    table = Table("schedule", "first answer right", "second answer right", "first as the full model's", "second as the full model's",
                  title="two questions over one cache")  # fmt: skip
    for score in scores:
        table.add_row(score.name, *(f"{share:.3f}" for share in (*score.right, *score.as_full)))
    return table


def _drift_table(drifts: list[Any]) -> Table:
    """Mean nats of each kind, and how far that is above the first schedule of the same keep or cache, with its standard error."""
    from lightvlm_fx.drift import compared

    title = "drift from the full model, nats an answer (above the first row of its size, ± standard error)"
    table = Table("schedule", *drifts[0].nats, title=title)
    first: dict[str, Any] = {}
    for drift in drifts:
        rival = first.setdefault(drift.name.split()[-1], drift)
        cells = []
        for kind, nats in drift.nats.items():
            more, error = compared(drift, rival, kind)
            cells.append(f"{nats.mean():.5f}" + ("" if rival is drift else f" ({more:+.5f} ± {error:.5f})"))
        table.add_row(drift.name, *cells)
    return table


@bench.command("prefill")
def bench_prefill(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    keep: Annotated[list[float] | None, typer.Option(help="Keep ratio; may be repeated.")] = None,
    preset: Preset = "lightvlm",
    batch: Some = 1,
    text: Prompt = 64,
    repeats: Some = 7,
    backend: Backend = "inductor",
    dtype: str = "bfloat16",
    device: str = "cpu",
    layers: Layers = None,
) -> None:
    """Time to first logits: full model, compiled full model, compiled schedules, and the FLOP-ideal."""
    from lightvlm_fx import bench as program

    chosen = program.shape(shape, layers)
    schedules = {f"{preset} @ {ratio:g}": Schedule.preset(preset, keep=ratio) for ratio in keep or [0.35, 0.03]}
    with err.status("building the model") as status:
        variants = program.prefill(chosen, schedules, batch=batch, text=text, repeats=repeats, backend=backend,
                                   dtype=dtype_of(dtype), device=device, tell=telling(status))  # fmt: skip
    table = Table("variant", "x compiled full", "FLOP-ideal", "of ideal", "x eager", "ms", "spread", "reduction", "rewrite s", "first s",
                  title=f"prefill, {chosen}, batch {batch}, {text} text tokens, {dtype}, {backend}")  # fmt: skip
    for row in program.rows(variants):
        share = "-" if row.reduction_share is None else f"{100 * row.reduction_share:.1f} %"
        table.add_row(row.name, f"{row.against_compiled:.2f}", f"{row.ideal:.2f}", f"{row.of_ideal:.2f}", f"{row.against_eager:.2f}",
                      f"{row.ms:.0f}", f"{100 * row.spread:.0f} %", share, f"{row.rewrite_s:.1f}", f"{row.first_s:.0f}")  # fmt: skip
    Console(width=max(out.width, 140)).print(table)
    out.print(program.machine(device))


@bench.command("decode")
def bench_decode(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    capacity: Annotated[list[int] | None, typer.Option(help="Entries a layer; may be repeated.")] = None,
    preset: Annotated[str, typer.Option("--preset", "-p", help="Preset with a bounded cache, see `lightvlm presets`.")] = "h2o",
    length: Annotated[list[int] | None, typer.Option(help="New tokens of an answer; may be repeated.")] = None,
    batch: Some = 1,
    text: Prompt = 64,
    repeats: Some = 7,
    backend: Backend = "inductor",
    dtype: str = "bfloat16",
    device: str = "cpu",
    layers: Layers = None,
) -> None:
    """Tokens a second of whole answers: DynamicCache, static cache with torch.compile, compiled schedules."""
    from lightvlm_fx import bench as program
    from lightvlm_fx.bench_decode import decode

    chosen, lengths = program.shape(shape, layers), tuple(length or (64, 1024, 4096))
    schedules = {f"{preset}, capacity {n}": Schedule.preset(preset, capacity=n) for n in capacity or [512]}
    with err.status("building the model") as status:
        variants = decode(chosen, schedules, lengths=lengths, batch=batch, text=text, repeats=repeats, backend=backend,
                          dtype=dtype_of(dtype), device=device, tell=telling(status))  # fmt: skip
    table = Table("variant", "new tokens", "x DynamicCache", "x static", "tokens/s", "first ms", "last ms", "cache MiB", "recompiles",
                  title=f"decode, {chosen}, batch {batch}, {text} text tokens, {dtype}, {backend}")  # fmt: skip
    for new in lengths:
        eager, static = (v.answer(new) for v in variants[:2])
        for v in variants:
            took = v.answer(new)
            table.add_row(v.name, str(new), f"{eager / took:.2f}", f"{static / took:.2f}", f"{batch * new / took:.1f}",
                          f"{1e3 * v.step(0):.1f}", f"{1e3 * v.step(new):.1f}", f"{v.peak / 2**20:.0f}", str(v.graphs))  # fmt: skip
    Console(width=max(out.width, 140)).print(table)
    out.print(program.machine(device))


@bench.command("answer")
def bench_answer(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    preset: Annotated[str, typer.Option("--preset", "-p", help="Preset with a bounded cache and its options.")] = "lightvlm:capacity=512",
    length: Annotated[int, typer.Option(help="New tokens.")] = 4096,
    text: Prompt = 64,
    backend: Backend = "inductor",
    dtype: str = "bfloat16",
    device: str = "cpu",
    layers: Layers = None,
) -> None:
    """One long answer in one piece: time a token and peak memory as it grows, recompiles, what choosing victims costs."""
    import itertools
    import statistics

    from lightvlm_fx import bench as program
    from lightvlm_fx.bench_answer import SETTLED, answer

    chosen = program.shape(shape, layers)
    with err.status("building the model") as status:
        made = answer(chosen, preset_of(preset, []), new=length, text=text, backend=backend, dtype=dtype_of(dtype),
                      device=device, tell=lambda n: status.update(f"token {n} of {length}"))  # fmt: skip
    title = f"one answer, {preset}, {chosen}, {text} text tokens, {dtype}, {backend}"
    table = Table("tokens", "ms a token", "peak MiB", "graphs compiled", title=title)
    marks = [1, 64, SETTLED, *range(1024, length, 1024), length]
    for first, end in itertools.pairwise(marks):
        ms = 1e3 * statistics.median(made.steps(first, end))
        table.add_row(f"{first} to {end}", f"{ms:.1f}", f"{made.peaks[end] / 2**20:.0f}", str(made.graphs[end] - made.graphs[first]))
    Console(width=max(out.width, 120)).print(table)
    slope, error = made.slope
    step = statistics.median(made.steps(SETTLED, length))
    grown = made.peaks[-1] / made.peaks[SETTLED] - 1
    out.print(f"behind token {SETTLED}: a step {100 * slope:+.2f} % longer each 1000 tokens (standard error {100 * error:.2f} %), "
              f"peak memory {100 * grown:+.2f} %, {made.graphs[-1] - made.graphs[SETTLED]} recompiles; "
              f"choosing victims takes {1e3 * made.choice:.2f} ms, {100 * made.choice / step:.1f} % of it")  # fmt: skip
    out.print(program.machine(device))


@bench.command("size")
def bench_size(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    preset: Annotated[str, typer.Option("--preset", "-p", help="Preset and its options.")] = "lightvlm",
    text: Prompt = 64,
    repeats: Some = 7,
    dtype: str = "bfloat16",
    device: str = "cpu",
    layers: Layers = None,
) -> None:
    """The graph that serves every size beside one made for the size (`static=True`): prefill and step, in turns."""
    import statistics

    from lightvlm_fx import bench as program
    from lightvlm_fx.bench_size import compare, ratio

    chosen = program.shape(shape, layers)
    with err.status("building the model") as status:
        made = compare(chosen, preset_of(preset, []), text=text, repeats=repeats, dtype=dtype_of(dtype), device=device,
                       tell=telling(status))  # fmt: skip
    table = Table("graph", "prefill ms", "step ms", "first answer s", title=f"{preset}, {chosen}, {text} text tokens, {dtype}, inductor")
    for variant in made:
        times = [f"{1e3 * statistics.median(x):.1f}" for x in (variant.prefill, variant.step)]
        table.add_row(variant.name, *times, f"{variant.first_s:.1f}")
    Console(width=max(out.width, 120)).print(table)
    out.print(f"every size / this size: prefill {ratio(made, 'prefill'):.3f}, step {ratio(made, 'step'):.3f}")
    out.print(program.machine(device))


@bench.command("first")
def bench_first(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    preset: Annotated[str, typer.Option("--preset", "-p", help="Preset and its options.")] = "lightvlm",
    text: Prompt = 64,
    backend: Backend = "inductor",
    dtype: str = "bfloat16",
    layers: Layers = None,
) -> None:
    """Seconds to the first answer of a new process: with an empty compile cache, and with what the process before left."""
    from lightvlm_fx import bench as program
    from lightvlm_fx.bench_first import both

    with err.status("two processes, one after the other"):
        schedule = preset_of(preset, []).model_dump_json()
        processes = both(shape=shape, layers=layers, schedule=schedule, text=text, dtype=dtype, backend=backend)
    table = Table("compile cache", "stage", "capture s", "rewriting s", "compiling, first run s", "first answer s", "second answer s",
                  title=f"first answer, {preset}, {program.shape(shape, layers)}, {text} text tokens, {dtype}, {backend}")  # fmt: skip
    for cache, made in zip(("empty", "full"), processes, strict=True):
        for i, stage in enumerate(made.stages):
            times = [f"{stage[what]:.1f}" for what in ("capture", "rewrite", "first_run")]
            answers = [f"{made.answer:.1f}", f"{made.again:.2f}"] if i == 0 else ["", ""]
            table.add_row(cache if i == 0 else "", stage["stage"], *times, *answers)
    Console(width=max(out.width, 140)).print(table)
    out.print(program.machine("cpu"))


@bench.command("memory")
def bench_memory(
    preset: Annotated[str, typer.Option("--preset", "-p", help="Preset and its options, as lightvlm:combine=recover.")] = "lightvlm",
    tokens: Annotated[list[int] | None, typer.Option(help="Visual tokens of the video, in frames of 72; may be repeated.")] = None,
    repeats: Some = 1,
    backend: Backend = "eager",
) -> None:
    """Peak memory and time of the prefill of one long video by a tiny Qwen2.5-VL, beside those of the same model unreduced."""
    from lightvlm_fx import bench as program
    from lightvlm_fx.bench_memory import apart

    table = Table("visual tokens", "unreduced MiB", "reduced MiB", "of unreduced", "unreduced ms", "reduced ms",
                  title=f"prefill of one video, tiny Qwen2.5-VL, {preset}, {backend}")  # fmt: skip
    with err.status("measuring") as status:
        for n in tokens or [1008, 2880, 5760, 8640, 11520]:
            status.update(f"{n} visual tokens")
            full, reduced = (apart(n, schedule, backend, repeats) for schedule in (Schedule.preset("none"), preset_of(preset, [])))
            share = f"{reduced.peak / full.peak:.2f}" if full.peak else "-"
            table.add_row(str(n), f"{full.peak / 2**20:.0f}", f"{reduced.peak / 2**20:.0f}", share,
                          f"{1e3 * full.seconds:.0f}", f"{1e3 * reduced.seconds:.0f}")  # fmt: skip
    Console(width=max(out.width, 120)).print(table)
    out.print(program.machine("cpu"))


@bench.command("cache")
def bench_cache(
    preset: Annotated[list[str] | None, typer.Option("--preset", "-p", help="Preset and its options; may be repeated.")] = None,
    text: Prompt = 64,
    length: Annotated[int, typer.Option(help="New tokens.", min=1)] = 8,
) -> None:
    """Memory that an answer's keys and values take, beside the uncompiled source's, and what stays once it is dropped."""
    from lightvlm_fx import bench as program
    from lightvlm_fx.bench_cache import SHAPE, SOURCE, apart

    schedules = {SOURCE: None} | {name: preset_of(name, []) for name in preset or ["none", "lightvlm"]}
    table = Table("model", "peak MiB", "held MiB", "left MiB", "held, of source",
                  title=f"one answer, {SHAPE.layers} layers x {SHAPE.kv_heads} KV heads x {SHAPE.hidden // SHAPE.heads}, "
                        f"{SHAPE.visual} visual and {text} text tokens, {length} new, float32, eager")  # fmt: skip
    source = None
    for name, schedule in schedules.items():
        with err.status(f"measuring {name}"):
            found = apart(name, schedule, text, length)
        source = source or found
        share = f"{found.held / source.held:.2f}" if source.held else "-"
        table.add_row(name, *(f"{x / 2**20:.0f}" for x in (found.peak, found.held, found.left)), share)
    Console(width=max(out.width, 120)).print(table)
    out.print(program.machine("cpu"))


def main() -> None:
    """Entry point: our own errors, files, and packages that are not there print as one message and exit with 2.

    What nobody foresaw exits with 70 and its traceback, so that no code of `verify` says it.
    """
    from lightvlm_fx import cli_artifact  # noqa: F401  (adds its commands to app)

    warnings.filterwarnings("ignore", module="torch")
    try:
        app()
    except LightVLMError as error:
        err.print(f"{type(error).__name__}: ", end="", style="bold red")
        err.print("\n".join([str(error), *getattr(error, "__notes__", [])]), soft_wrap=True)
        raise SystemExit(2) from None
    except ImportError as error:
        no_torch = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        if error.name is not None and not no_torch:  # with a name it is Python's own; without, its text says what to install
            raise
        said = "this command needs PyTorch (pip install torch); run, inspect and verify without --model do not" if no_torch else str(error)
        err.print(said, soft_wrap=True)
        raise SystemExit(2) from None
    except OSError as error:
        err.print(str(error), soft_wrap=True)
        raise SystemExit(2) from None
    except Exception:
        err.print(traceback.format_exc(), soft_wrap=True)
        err.print("this is a defect of lightvlm_fx: please report it with the lines above", soft_wrap=True)
        raise SystemExit(DEFECT) from None


if __name__ == "__main__":
    main()
