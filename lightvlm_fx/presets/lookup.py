"""Presets by name, with their options checked."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError, validate_call

from lightvlm_fx import presets
from lightvlm_fx.errors import ScheduleError, UnknownName, shown
from lightvlm_fx.frozen import STRICT, readable
from lightvlm_fx.presets.places import PLACES, place
from lightvlm_fx.schedule import Schedule


def collect(path: Iterable[str], package: str) -> dict[str, Callable[..., Schedule]]:
    """The presets of a package's files, by function name: of each file that has a function of its own name, all public functions."""
    found: dict[str, Callable[..., Schedule]] = {}
    for file in pkgutil.iter_modules(path):
        module = importlib.import_module(f"{package}.{file.name}")
        own = {name: x for name, x in vars(module).items() if inspect.isfunction(x) and x.__module__ == module.__name__}
        functions = {name: x for name, x in own.items() if not name.startswith("_")}
        found |= functions if file.name in functions else {}
    return found


FUNCTIONS = collect(presets.__path__, presets.__name__)
PRESETS = {name.replace("_plus", "+").replace("_", "-"): make for name, make in FUNCTIONS.items()}


def grouped() -> dict[str, list[str]]:
    """The names of all presets by where they act at their defaults, in alphabetical order each."""
    at = {name: place(make(name)) for name in sorted(PRESETS)}
    return {where: [name for name in at if at[name] == where] for where in PLACES}


def ordered() -> list[str]:
    """The names of all presets in the order of `grouped`, which is that of lists and pages."""
    return [name for names in grouped().values() for name in names]


def sure(name: str) -> str:
    """How sure the steps of the preset `name` are: what is confirmed, what was read from code, what is ours."""
    text: str = _module(name).SURE
    return text


def _module(name: str) -> Any:
    return sys.modules[PRESETS[name].__module__]


@functools.cache
def _checked(name: str) -> Callable[..., Schedule]:
    """The preset `name`, whose options must be of the types that it is written with."""
    return validate_call(config=STRICT)(PRESETS[name])


def defaults(name: str) -> dict[str, Any]:
    """Every option of the preset `name`, and what it is where it is not given."""
    plain = {p.name: p.default for p in inspect.signature(PRESETS[name]).parameters.values() if p.kind is not p.VAR_KEYWORD}
    return plain | getattr(_module(name), "MORE", {})


def make(name: str, /, **options: object) -> Schedule:
    """The preset `name` with `options`. Raises UnknownName for either, ScheduleError for a bad value."""
    if not isinstance(name, str) or name not in PRESETS:
        raise UnknownName.of("preset", name, PRESETS)
    known = defaults(name)
    for option, value in options.items():
        if option not in known:
            raise UnknownName.of(f"option of preset {name!r}", option, known)
        usual = known[option]
        if isinstance(usual, tuple) and not isinstance(value, tuple | list):
            raise ScheduleError(f"{name}: {option} must be a list such as {list(usual)}, got {shown(value)}")
    try:
        return _checked(name)(**options)
    except ValidationError as error:
        raise readable(error, f"a valid option of preset {name!r}", list(known)) from None
