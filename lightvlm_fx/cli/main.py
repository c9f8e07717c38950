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

from lightvlm_fx.cli.base import (
    Backend,
    Console,
    File,
    Keep,
    Model,
    Preset,
    app,
    err,
    has_keep,
    number,
    out,
    plain,
    preset_of,
    schedule_of,
    telling,
)
from lightvlm_fx.errors import InputError, LightVLMError
from lightvlm_fx.releases import NO_TORCH
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.serving.opening import load_model
from lightvlm_fx.version import __version__

DEFECT = 70  # exit code, EX_SOFTWARE of sysexits.h


def _say_version(wanted: bool) -> None:
    if wanted:
        out.print(f"lightvlm_fx {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version.")]


@app.callback()
def options(version: Version = False) -> None:
    """Make vision-language models cheap to run."""


@app.command()
def presets() -> None:
    """List the presets, their options and what they do: by where they act, the vision tower first."""
    import inspect

    from lightvlm_fx.presets.lookup import PRESETS, defaults, ordered

    table = Table("preset", "what it is", "options and defaults")
    for name in ordered():
        options = ", ".join(f"{option}={usual!r}" for option, usual in defaults(name).items())
        paragraphs = (inspect.getdoc(PRESETS[name]) or "").split("\n\n")
        table.add_row(name, "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs), options)
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
        from lightvlm_fx.eval import demo as program

        source, processor = load_model(model)
        items = opened or [(p.stem, open_picture(p), question or asked) for p, asked in program.bundled()]
        out.print(str(lightvlm.explain(source, schedule)))
        fast = lightvlm.compile(source, schedule, backend=backend)
        answers: list[program.Answered] = []
        for a in program.answers(source, fast, processor, items, telling(status)):
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
    from lightvlm_fx.eval import show as painter
    from lightvlm_fx.eval.demo import ask

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

    from lightvlm_fx.eval import accuracy as program
    from lightvlm_fx.eval import dialogues
    from lightvlm_fx.eval import drift as drifting

    kinds = tuple(kind or program.KINDS)
    ways = {"--artifact": artifact, "--turns": turns, "--drift": drift}
    if len(asked := [way for way, given in ways.items() if given]) > 1:
        raise InputError(f"{' and '.join(asked)} are tables of their own; ask for one at a time")
    if artifact:
        Console(width=max(out.width, 140)).print(_artifact_table(artifact, samples, kinds, seed))
        return
    schedules: dict[str, Schedule] = {}
    for share in capacity or []:
        for given in preset or ["lightvlm"]:
            schedules[f"{given}, cache {share}"] = preset_of(given, option or [], capacity=number(share))
    for ratio in [] if capacity else keep or [0.35, 0.03]:
        schedule = None
        for given in preset or ["lightvlm"]:
            if has_keep(given):
                schedules[f"{given} @ {ratio:g}"] = schedule = preset_of(given, option or [], keep=ratio)
            else:
                schedules[given] = preset_of(given, option or [])
        if baselines and schedule:
            schedules |= {f"{name} @ {ratio:g}": s for name, s in program.baselines(schedule, ratio).items()}
    with Progress(console=err) as progress:
        total = samples * (1 if turns else len(kinds))
        tasks = {name: progress.add_task(escape(plain(name)), total=total) for name in ("full model", *schedules)}

        def tick(name: str, n: int) -> None:
            progress.update(tasks[name], advance=n)

        if turns:
            table = _turns_table(dialogues.turns(schedules, samples, seed=seed, tick=tick))
        elif drift:
            table = _drift_table(drifting.drifts(schedules, samples, kinds=kinds, seed=seed, tick=tick))
        else:
            table = _score_table(program.scores(schedules, samples, kinds=kinds, seed=seed, tick=tick), schedules)
    table.title = f"{table.title}, {samples} held-out {'dialogues' if turns else 'questions a kind'}"
    Console(width=max(out.width, 140)).print(table)


def _score_table(scores: list[Any], schedules: dict[str, Schedule]) -> Table:
    from lightvlm_fx.eval.accuracy import mean_visual_tokens

    full = scores[0]
    table = Table("schedule", "mean visual tokens", "of full", *full.right, "things placed", title="exact match")
    for score in scores:
        tokens = mean_visual_tokens(schedules[score.name], score.tokens, 8) if score.name in schedules else score.tokens
        table.add_row(score.name, f"{tokens:.1f}", f"{score.accuracy() / full.accuracy():.3f}",
                      *(f"{score.accuracy(kind):.3f}" for kind in full.right), f"{score.grounding:.3f}")  # fmt: skip
    return table


def _artifact_table(folders: list[Path], samples: int, kinds: tuple[str, ...], seed: int) -> Table:
    from lightvlm_fx.eval.artifact import scores

    found = scores(folders, samples, kinds=kinds, seed=seed, tick=lambda name, n: None)
    table = Table("artifact", *kinds, "mean", "compiled model's mean", "same tokens as the compiled model",
                  title=f"exact match on {found[0].questions} held-out questions")  # fmt: skip
    for score in found:
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
    from lightvlm_fx.eval.drift import compared

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


def main() -> None:
    """Entry point: our own errors, files, and packages that are not there print as one message and exit with 2.

    What nobody foresaw exits with 70 and its traceback, so that no code of `verify` says it.
    """
    from lightvlm_fx.cli import artifact, bench, serve  # noqa: F401  (they add their commands to app)

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
        said = f"this command {NO_TORCH}; run, inspect and verify without --model do without" if no_torch else str(error)
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
