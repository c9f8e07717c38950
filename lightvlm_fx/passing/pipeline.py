"""Runs passes: order checked, clone, provenance, contract, cleanup, shapes re-inferred, counts reported."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightvlm_fx.compat import shapes_in_python, tracing
from lightvlm_fx.errors import LightVLMError, OrderError, PostconditionError, PreconditionError, ScheduleError, shown
from lightvlm_fx.graph.pretty import diff, target_name, text
from lightvlm_fx.graph.program import Program
from lightvlm_fx.graph.shapes import Record, check_shapes, infer_shapes, record
from lightvlm_fx.passing.pass_base import Pass, PassResult, parse_pass


@dataclass(frozen=True)
class PassRun:
    """What one pass of a run did."""

    pass_text: str
    result: PassResult
    delta: str  # "+1 lightvlm.select_tokens, -1 aten.detach"

    def __str__(self) -> str:
        counts = f"{self.result.matched}/{self.result.expected} matched"
        return "   ".join(x for x in (f"{self.pass_text:<60}", counts, self.delta or "no change", self.result.note) if x)


class Pipeline:
    """A literal list of passes; `str` and `parse` are inverses."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self.passes = tuple(passes)
        problems = []
        for i, p in enumerate(self.passes):
            late = {q.name for q in self.passes[i + 1 :]} & set(p.after)
            problems += [f"{p.name} must run after {name}" for name in sorted(late)]
        if problems:
            raise OrderError(f"passes in an order they forbid: {'; '.join(problems)}\n  order given: {self}")

    def __str__(self) -> str:
        return " -> ".join(map(str, self.passes))

    @staticmethod
    def parse(written: str) -> Pipeline:
        """The pipeline that prints as `written`. Raises ScheduleError, UnknownName or OrderError."""
        from lightvlm_fx.passes import CATALOGUE

        if not isinstance(written, str):
            raise ScheduleError(f"expected the text of a pipeline, 'pass -> pass{{option=value}}', got {shown(written)}")
        return Pipeline([parse_pass(part, CATALOGUE) for part in written.split(" -> ") if written])

    @tracing()
    def run(
        self, program: Program, *, strict: bool = True, dump: str | Path | None = None, stop_after: int | None = None
    ) -> tuple[Program, list[PassRun]]:
        """A rewritten copy of `program`, and what each pass did. `program` itself is not changed.

        With `dump`, the text before and after every pass is written to that folder. A pass that matches
        fewer places than it expects is an error under `strict`, else a warning.
        """
        current, steps = program.clone(), []
        folder = Path(dump) if dump else None
        _dump(folder, 0, "captured", current)
        for i, pass_ in enumerate(self.passes[:stop_after]):
            try:
                step = _apply(pass_, current)
            except LightVLMError as error:
                error.add_note(f"while running pass {i + 1}/{len(self.passes)} of the {program.stage} pipeline: {self}")
                raise
            steps.append(step)
            _dump(folder, i + 1, pass_.name, current)
            if step.result.matched != step.result.expected:
                message = (
                    f"{pass_}: expected to match {step.result.expected} places, matched {step.result.matched}"
                    + (f" ({step.result.note})" if step.result.note else "")
                )
                if strict:
                    raise PreconditionError(message + "; pass strict=False to go on with a warning")
                warnings.warn(message, stacklevel=2)
        current.graph_module.recompile()
        return current, steps


def _dump(folder: Path | None, number: int, name: str, program: Program) -> None:
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{program.stage}-{number:02d}-{name}.txt").write_text(text(program))


def _apply(pass_: Pass, program: Program) -> PassRun:
    """Run one pass on the pipeline's own copy, and check what it did."""
    if program.stage not in pass_.stages:
        raise PreconditionError(f"{pass_}: applies to {' and '.join(pass_.stages)} programs, got a {program.stage} program")
    pass_.requires(program)
    level = int(os.environ.get("LIGHTVLM_DEBUG", "0"))
    old, old_text = record(program), text(program) if level >= 2 else ""
    with shapes_in_python():
        result = pass_.call(program)
        for node in program.graph.nodes:
            if node not in old:
                node.meta["lightvlm_pass"] = pass_.name
        program.graph.eliminate_dead_code()
        program.graph.lint()
        new = record(program)
        infer_shapes(program, old)
        if level >= 4:
            check_shapes(program)
    if (old != new) != result.changed:
        raise PostconditionError(
            f"{pass_}: reports {result.matched} changes, but the graph did {'' if old != new else 'not '}change"
        )
    pass_.ensures(program)
    step = PassRun(str(pass_), result, _delta(old, new))
    if level >= 1:  # LIGHTVLM_DEBUG: 1 a line a pass, 2 also a diff, 3 also the whole text, 4 also compares shapes
        print(step)
    if level >= 2 and result.changed:
        print(diff(old_text, text(program)))
    if level >= 3:
        print(text(program))
    return step


def _delta(old: Record, new: Record) -> str:
    """How many calls of each operator were added and removed."""
    was, now = (Counter(target_name(made[0]) for n, made in nodes.items() if n.op == "call_function") for nodes in (old, new))
    changes = [(name, now[name] - was[name]) for name in sorted(was.keys() | now.keys()) if now[name] != was[name]]
    return ", ".join(f"{n:+d} {name}" for name, n in changes)
