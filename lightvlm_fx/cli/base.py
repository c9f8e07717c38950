"""What the files of the command line share: the applications, common options, and how a schedule is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import console
from rich.status import Status
from rich.text import Text

from lightvlm_fx.errors import ScheduleError, UnknownName
from lightvlm_fx.schedule import Schedule

# What a terminal acts on in place of printing it (but for line ends and tabs), what turns the order of letters around, and
# halves of characters, which no encoding takes.
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """`text` with escapes for whatever would act on a terminal: questions, answers and manifests are other people's."""
    return ACTING.sub(lambda found: ascii(found[0])[1:-1], text)


class Console(console.Console):
    """Prints strings as they are: no markup, no emoji codes, nothing that acts on the terminal. Style goes by `style` or `Text`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **options)


def telling(status: Status) -> Callable[[str], None]:
    """A function that shows a line as `status`, whose own `update` reads markup."""
    return lambda text: status.update(Text(plain(text)))


app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Make vision-language models cheap to run."
)
bench = typer.Typer(no_args_is_help=True, help="Measure speed, ratios first.")
app.add_typer(bench, name="bench")
out = Console()
err = Console(stderr=True)

Keep = Annotated[str, typer.Option(help="Visual tokens left at the end: a ratio (0.35) or a count (64).")]
Preset = Annotated[str, typer.Option("--preset", "-p", help="Preset, see `lightvlm presets`; with options as in h2o:capacity=96.")]
File = Annotated[Path | None, typer.Option("--schedule", "-s", help="Schedule file (TOML); replaces --preset and --keep.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Model folder or hub name (default: the bundled model).")]
Backend = Annotated[str, typer.Option(help="torch.compile backend, or eager.")]
Presets = Annotated[list[str] | None, typer.Option("--preset", "-p", help="Preset, with options as in fastv:keep=0.25; may be repeated.")]
Prepack = Annotated[bool, typer.Option("--prepack", help="Also with weights packed for oneDNN: compile(prepack=True).")]
Some = Annotated[int, typer.Option(min=1)]
Layers = Annotated[int | None, typer.Option(min=1, help="Decoder layers, if not the shape's.")]
Prompt = Annotated[int, typer.Option(min=2, help="Text tokens around the picture.")]


def schedule_of(preset: str, keep: str | None, file: Path | None) -> Schedule:
    if file:
        return Schedule.load(file)
    return preset_of(preset, []) if keep is None else preset_of(preset, [], keep=number(keep))


def preset_of(preset: str, more: list[str], **options: Any) -> Schedule:
    """The preset of `name:option=value:...`, with the options that all get."""
    name, *own = preset.split(":")
    for parts in (more, own):
        given: dict[str, Any] = {}
        for part in parts:
            key, equals, text = part.partition("=")
            if not equals:
                raise ScheduleError(f"{preset}: an option of a preset is written name=value, got {part!r}")
            if key in given:
                raise ScheduleError(f"{preset}: option {key} is given twice")
            given[key] = option_value(text)
        options |= given
    return Schedule.preset(name, **options)


def has_keep(preset: str) -> bool:
    """Whether the preset of `name:option=value:...` has an option `keep`; of an unknown name it is not said yet that there is none."""
    from lightvlm_fx.presets.lookup import PRESETS, defaults

    name = preset.split(":")[0]
    return name not in PRESETS or "keep" in defaults(name)


def number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def option_value(text: str) -> Any:
    """`2,4,6` as a tuple of numbers, `0.5` as a number, anything else as it is."""
    if "," in text:
        return tuple(number(part) for part in text.split(",") if part)
    return {"true": True, "false": False}.get(text.lower(), number(text))


def dtype_of(name: str) -> Any:
    """The torch.dtype of that name. Raises UnknownName."""
    import torch

    known = ("bfloat16", "float16", "float32", "float64")
    if name not in known:
        raise UnknownName.of("dtype", name, known)
    return getattr(torch, name)
