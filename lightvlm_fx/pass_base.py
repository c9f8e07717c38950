"""What a pass is: a frozen value with options as fields, and `requires -> call -> ensures`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.program import Program, Stage


@dataclass(frozen=True)
class PassResult:
    """What a pass did: how many places it matched of how many it expected, and why none where none."""

    matched: int
    expected: int
    note: str = ""  # what changed, or why nothing did

    @property
    def changed(self) -> bool:
        return self.matched > 0


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of one program. `call` edits the copy it is given; the pipeline clones and cleans up."""

    name: ClassVar[str]
    stages: ClassVar[tuple[Stage, ...]]  # programs it applies to
    after: ClassVar[tuple[str, ...]] = ()  # passes that must not come behind it; checked, never re-sorted
    drops: ClassVar[tuple[str, ...]] = ()  # kinds of program outputs that it takes away ("keys", "values")

    @abstractmethod
    def requires(self, program: Program) -> None:
        """Raise PreconditionError if the program or the options are not fit."""

    @abstractmethod
    def call(self, program: Program) -> PassResult:
        """Rewrite `program` in place."""

    @abstractmethod
    def ensures(self, program: Program) -> None:
        """Raise PostconditionError if the result breaks the pass's promise."""

    def __str__(self) -> str:
        """`name{option=value,...}` with the options that differ from their defaults; `parse` is the inverse."""
        parts = [f"{f.name}={_write(v)}" for f in fields(self) if (v := getattr(self, f.name)) != f.default]
        return self.name + (f"{{{','.join(parts)}}}" if parts else "")


def _write(value: Any) -> str:
    return "/".join(map(str, value)) + "/" if isinstance(value, tuple) else str(value)


def _fits(value: Any, usual: Any) -> bool:
    """Whether an option's value is of the kind of its default."""
    return type(value) is type(usual) or (isinstance(usual, float) and type(value) is int)


def _read(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    if text.endswith("/"):
        return tuple(_read(part) for part in text[:-1].split("/")) if text != "/" else ()
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def parse_pass(text: str, catalogue: dict[str, type[Pass]]) -> Pass:
    """The pass that prints as `text`. Raises ScheduleError or UnknownName."""
    from lightvlm_fx.errors import UnknownName

    match = re.fullmatch(r"([a-z-]+)(?:\{(.*)\})?", text.strip())
    if not match:
        raise ScheduleError(f"expected 'name{{option=value,...}}', got {text!r}")
    name, options = match.groups()
    if name not in catalogue:
        raise UnknownName.of("pass", name, catalogue)
    kind = catalogue[name]
    known = {f.name: f for f in fields(kind)}
    values = {}
    for part in filter(None, (options or "").split(",")):
        key, _, written = part.partition("=")
        if key not in known:
            raise UnknownName.of(f"option of pass {name!r}", key, known)
        value, usual = _read(written), known[key].default
        if usual is not MISSING and not _fits(value, usual):
            raise ScheduleError(f"{name}: {key} must be {type(usual).__name__} like {_write(usual)}, got {written!r}")
        values[key] = value
    return kind(**values)
