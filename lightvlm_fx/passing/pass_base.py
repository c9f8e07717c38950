"""What a pass is: a frozen value with options as fields, and `requires -> call -> ensures`."""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, ClassVar, get_type_hints

from pydantic import BaseModel, Field, ValidationError, create_model

from lightvlm_fx.errors import ScheduleError, UnknownName, shown
from lightvlm_fx.frozen import MOST, STRICT, readable
from lightvlm_fx.graph.program import Program, Stage
from lightvlm_fx.methods.base import Method, method_table, written

Index = Annotated[int, Field(ge=-MOST, le=MOST)]  # of a layer, a span of layers or slots: `requires` compares it with the program


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
    after: ClassVar[tuple[str, ...]] = ()  # passes that must not come after it; checked, never re-sorted
    drops: ClassVar[tuple[str, ...]] = ()  # kinds of program outputs that it takes away ("keys", "values")

    def __post_init__(self) -> None:
        """Raise ScheduleError or UnknownName for an option that is not of its field's type and range."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        try:
            checked = _options(type(self)).model_validate(given)
        except ValidationError as error:
            raise readable(error, f"a valid option of pass {self.name!r}", list(given)) from None
        for name in given:  # methods may be given by name
            object.__setattr__(self, name, getattr(checked, name))

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
        parts = [f"{f.name}={written(v)}" for f in fields(self) if (v := getattr(self, f.name)) != f.default]
        return self.name + (f"{{{','.join(parts)}}}" if parts else "")


@functools.cache
def _options(kind: type[Pass]) -> type[BaseModel]:
    hints = get_type_hints(kind, include_extras=True)
    options: dict[str, Any] = {f.name: (hints[f.name], ...) for f in fields(kind)}
    return create_model(kind.__name__, __config__=STRICT, **options)


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
    match = re.fullmatch(r"([a-z-]+)(?:\{(.*)\})?", text.strip())
    if not match:
        raise ScheduleError(f"expected 'name{{option=value,...}}', got {shown(text)}")
    name, options = match.groups()
    if name not in catalogue:
        raise UnknownName.of("pass", name, catalogue)
    kind = catalogue[name]
    known = {f.name: f for f in fields(kind)}
    values = {}
    for part in filter(None, (options or "").split(",")):
        key, _, given = part.partition("=")
        if key not in known:
            raise UnknownName.of(f"option of pass {name!r}", key, known)
        if key in values:
            raise ScheduleError(f"{name}: {key} is given twice, got {shown(text)}")
        usual = known[key].default
        method = usual is None or isinstance(usual, Method)
        value = given if method else _read(given)
        if not method and usual is not MISSING and not _fits(value, usual):
            raise ScheduleError(f"{name}: {key} must be {type(usual).__name__} like {written(usual)}, got {shown(given)}")
        values[key] = method_table(given, _read) if method else value
    return kind(**values)
