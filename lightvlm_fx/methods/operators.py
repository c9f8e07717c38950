"""Methods as operators of torch: schema, fake result and traceable body follow from the class.

An operator takes what the method reads, in the order of `ARGUMENTS`, then its options in theirs: `lightvlm::score_density(Tensor hidden,
Tensor segment, float power) -> Tensor`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from lightvlm_fx.compat import OpOverload
from lightvlm_fx.errors import ScheduleError, shown
from lightvlm_fx.methods import registry
from lightvlm_fx.methods.base import ARGUMENTS, TYPES, Method, View
from lightvlm_fx.ops.bodies import derived


@dataclass(frozen=True)
class Role:
    """One function of a kind of method as an operator: how it is called, what it always reads, what it gives."""

    prefix: str
    reads: tuple[str, ...]
    returns: Callable[[type[Any]], str]
    fake: Callable[[View, type[Any]], Any]
    options: bool = True


def _scores(view: View, kind: type[Any]) -> Any:
    return view.segment.new_empty(view.segment.shape, dtype=torch.float32)


def _combined(view: View, kind: type[Any]) -> Any:
    b, k = view.index.shape
    counted = view.segment.new_empty(b, k, dtype=torch.float32)
    return view.hidden.new_empty(b, k, view.hidden.shape[2]), counted, torch.empty_like(view.segment)


def _entry_scores(view: View, kind: type[Any]) -> Any:
    b, s = view.segment.shape
    heads = 1 if kind.one_choice or view.shared else (view.k if view.k is not None else view.v).shape[1]
    score = view.segment.new_empty(b, heads, s, dtype=torch.float32)
    return (score, score.new_empty(b, 2)) if kind.statistics else score


def _asked(view: View, kind: type[Any]) -> Any:
    return view.segment.new_empty(view.segment.shape[0], 1, view.segment.shape[1], dtype=torch.float32)


def _merged(view: View, kind: type[Any]) -> Any:
    b, g, _, d = view.values.shape
    k = view.index.shape[2]
    held = view.keys.new_empty(b, g, k, view.keys.shape[3]), view.values.new_empty(b, g, k, d)
    counted = view.index.new_empty(view.index.shape, dtype=torch.float32)
    return (*held, counted, torch.empty_like(counted)) if kind.counts else held


def _went(view: View, kind: type[Any]) -> Any:
    return view.index.new_empty(view.segment.shape[0], view.index.shape[1], view.segment.shape[1])


def _statistic(view: View, kind: type[Any]) -> Any:
    return view.q.new_empty(view.segment.shape[0], dtype=torch.float32)


def _shares(view: View, kind: type[Any]) -> Any:
    return view.statistic.new_empty(view.statistic.shape[:2])


def _tensors(n: int) -> str:
    return f"({', '.join(['Tensor'] * n)})"


ROLES = {
    "score": Role("score", ("segment",), lambda kind: "Tensor", _scores),
    "note": Role("note", ("segment", "embeds"), lambda kind: "Tensor", _scores),
    "wanted": Role("wanted", ("score", "segment", "budget"), lambda kind: "Tensor", lambda view, kind: torch.empty_like(view.budget)),
    "combine": Role("combine", ("segment",), lambda kind: _tensors(3), _combined),
    "prompt": Role("kv_score", ("segment",), lambda kind: _tensors(2) if kind.statistics else "Tensor", _entry_scores),
    "ask": Role("kv_ask", ("segment",), lambda kind: "Tensor", _asked),
    "went": Role("kv_went", ("keys", "values", "segment", "index", "entry"), lambda kind: "Tensor", _went),
    "merge": Role("kv_merge", ("segment",), lambda kind: _tensors(4 if kind.counts else 2), _merged),
    "spread": Role("kv_spread", ("segment",), lambda kind: "Tensor", _statistic),
    "shares": Role("kv_shares", ("statistic",), lambda kind: "Tensor", _shares, options=False),
}


def arguments(kind: type[Method], role: str) -> tuple[str, ...]:
    """What the operator takes before the method's options, by the names of `ARGUMENTS`."""
    read = {*ROLES[role].reads, *(() if role in ("note", "wanted", "went", "shares") else kind.reads)}
    return tuple(name for name in ARGUMENTS if name in read)


def options(kind: type[Method]) -> dict[str, str]:
    """The options that the operator takes, and their types in its schema."""
    return {name: TYPES[type(field.default)] for name, field in kind.model_fields.items() if name not in kind.wiring}


def _check(kind: type[Method]) -> None:
    """Raise ScheduleError for a class that reads what there is not, or has an option that no operator takes."""
    unknown = [name for name in kind.reads if name not in ARGUMENTS]
    if unknown:
        raise ScheduleError(f"{kind.what} {kind.name!r} reads {', '.join(unknown)}; what can be read: {', '.join(ARGUMENTS)}")
    for name, option in kind.model_fields.items():
        if name not in kind.wiring and type(option.default) not in TYPES:
            raise ScheduleError(
                f"{kind.what} {kind.name!r}: option {name!r} has the default {shown(option.default)}; operators take options "
                "with a default that is a switch, a number or a string"
            )


_METHODS: dict[OpOverload, tuple[type[Method], str]] = {}


@functools.cache
def operator(kind: type[Method], role: str) -> OpOverload:
    """The operator of one function of a method, registered when it is first asked for."""
    _check(kind)
    part, given = ROLES[role], arguments(kind, role)
    own = options(kind) if part.options else {}
    schema = ", ".join([*(ARGUMENTS[name] for name in given), *(f"{type_} {name}" for name, type_ in own.items())])

    def view_of(values: tuple[Any, ...]) -> View:
        return View(**dict(zip(given, values, strict=False)))

    def body(*values: Any) -> Any:
        return getattr(kind.model_construct(**dict(zip(own, values[len(given) :], strict=True))), role)(view_of(values))

    def fake(*values: Any) -> Any:
        return part.fake(view_of(values), kind)

    body.__doc__ = kind.__doc__
    owner = kind.__module__.split(".")[0]
    namespace = "lightvlm" if owner == "lightvlm_fx" else f"lightvlm_{owner}"
    op = derived(f"{namespace}::{part.prefix}_{kind.name.replace('-', '_')}", f"({schema}) -> {part.returns(kind)}", body, fake)
    _METHODS[op] = kind, role
    return op


def method_of(target: Any) -> tuple[type[Method], str] | None:
    """Of which class and which function a graph's operator is; None of any other."""
    return _METHODS.get(target)


def call(edit: Any, name: str, method: Method, role: str, **given: Any) -> fx.Node:
    """A node that calls a method's operator; `given` holds at least what it reads, by the names of `ARGUMENTS`."""
    kind = type(method)
    own = [getattr(method, option) for option in options(kind)] if ROLES[role].options else []
    node: fx.Node = edit.call(name, operator(kind, role), *(given[argument] for argument in arguments(kind, role)), *own)
    return node


def every() -> dict[str, tuple[type[Method], str]]:
    """Every operator of every method by its name, registered: of which class, and which function."""
    found = {}
    for kind in (*registry.TOKEN_SCORES.all(), *registry.COMBINES.all(), *registry.ENTRY_SCORES.all(),
                 *registry.ENTRY_MERGES.all(), *registry.BUDGETS.all()):  # fmt: skip
        for role in ROLES:
            if role in vars(kind) or any(role in vars(base) for base in kind.__mro__[1:] if vars(base).get("name")):
                name = operator(kind, role).name().removesuffix(".default")
                found[name.removeprefix("lightvlm::")] = (kind, role)
    return found
