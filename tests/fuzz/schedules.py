"""Random schedules, presets, files and pass texts: valid, nearly valid and hostile.

`python -m tests.fuzz.schedules --count 100000 --seed 0` ends in one line, `schedules: <n> clear, <n> wrong, <n> crash`.
Clear: a valid object that holds exactly what was given and reads back equal, or one LightVLMError that names the field.
Wrong: anything else that comes back. Crash: an error that is not ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import decimal
import enum
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lightvlm_fx.cli.base import preset_of
from lightvlm_fx.errors import LightVLMError, shown
from lightvlm_fx.kv import Kv
from lightvlm_fx.methods.base import Method
from lightvlm_fx.methods.registry import BUDGETS, COMBINES, ENTRY_MERGES, ENTRY_SCORES, TOKEN_SCORES, Registry
from lightvlm_fx.methods.registry import WHEN as MOMENTS
from lightvlm_fx.passes import CATALOGUE, EXAMPLES
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.presets import PRESETS, defaults
from lightvlm_fx.schedule import POSITIONS, Cut, Schedule


class Wrong(Exception):
    """What came back is neither what was given nor an error that names the field."""


class Whole(enum.IntEnum):
    THREE = 3


class Text(str):
    """A string that is not quite one."""


def deep(levels: int) -> list[Any]:
    out: list[Any] = []
    for _ in range(levels):
        out = [out]
    return out


def forms(*registries: Registry[Any]) -> tuple[Any, ...]:
    """Methods by name, as tables and as values."""
    kinds = [kind for registry in registries for kind in registry.all() if kind.name != "weights"]
    tables = [{"name": kind.name, **kind().model_dump()} for kind in kinds]
    return (*(kind.name for kind in kinds), *tables, *(kind() for kind in kinds))


GOOD: dict[str, tuple[Any, ...]] = {
    "layer": (0, 1, 2, 7, 0.25, 0.9), "keep": (1, 1.0, 9, 64, 0.35, 0.03), "score": forms(TOKEN_SCORES, ENTRY_SCORES),
    "combine": forms(COMBINES),
    "positions": POSITIONS, "layers": ((1, 2), [0.25, 0.5], [0.25, 0.625, 0.875], (3,)), "power": (0, 0.25, 4.0), "centres": (0, 0.1, 1.0),
    "group": (1, 5), "seed": (0, 2**32 - 1), "capacity": (1, 1.0, 64, 512, 0.1, 0.5), "of": ("all", "visual"), "when": forms(MOMENTS),
    "prompt": ("", *forms(ENTRY_SCORES)), "kv_score": forms(ENTRY_SCORES), "merge": forms(ENTRY_MERGES), "kv_merge": forms(ENTRY_MERGES),
    "heads": ("each", "shared"), "kv_layers": (1, 4),
    "budgets": (*forms(BUDGETS), [1, 2.0], [3] * 8), "sinks": (0, 4), "recent": (0, 8, 32), "window": (1, 32), "kernel": (1, 5),
    "alpha": (0.5, 1.0), "visual_share": (0, 0.3, 0.5), "every": (1, 64), "schema_version": (1,),
    "name": ("", "mine", "naïve \N{GRINNING FACE}"),
    "sizes": ((0, 0, 1), ()), "biased": ((), (1,)), "running": (None, *forms(ENTRY_SCORES)),
}  # fmt: skip
SWITCHES = (True, False)
HOSTILE: tuple[Any, ...] = (
    True, False, None, "3", "x", "", "off", "true", b"3", b"", 0, -1, 1, 2, 3, 4, 1.0, 2.0, 0.0, -0.0, 0.5, -0.5, 1.5, 5e-324, 1e308,
    float("nan"), float("inf"), float("-inf"), 2**31, 2**32, 2**63, -(2**63), 10**400, 10**5000, -(10**5000), [], [1], [True],
    ["1"], [10**400], [float("nan")], [5e-324, 1e308], (), (1, 0.5), {}, {"a": 1}, set(), object(), 1j, deep(5), deep(5000),
    {"name": "density", "power": "x"}, {"name": "window", "kernel": 2}, {"name": "periodic", "every": True}, {"name": []}, {"power": 1},
    "\ud800", "\x00", "\x1b[31m", "[/red]", "x" * 10**5, datetime.date(2026, 1, 1), decimal.Decimal("0.5"), Whole.THREE, Text("density"),
    np.int64(3), np.float64(0.5), np.float32(0.5), np.bool_(True), np.array([1, 2]), np.array([]), int, len,
)  # fmt: skip
TEXTS = (
    "3", "-1", "0", "0.5", "1.0", "nan", "inf", "-inf", "True", "true", "False", "", "x", "1e400", "1_0", " 1", "9" * 400, "9" * 5000,
    "1/2/", "1/x/", "/", "//", "[1]", "{}", "density", "marks", "\x1b[31m", "[/red]", "0x10", "\u0663", "1,2", "2.5,", ",",
)  # fmt: skip
TOML = (
    "3", "-1", "0", "0.5", "1.0", "-0.0", "nan", "inf", "true", "'3'", "'x'", "[]", "[1]", "[true]", "{}", "{a = 1}", "9" * 400, "9" * 5000,
    "1e400", "2026-01-01", "0x10", "1_000", "[" * 500 + "]" * 500, "'''\n'''", '"\\u0000"', '"\\uD800"', "", "=", "[nan]",
    "[1e-320, 1e308]",
)  # fmt: skip
PATHS: tuple[Any, ...] = (
    None, 3, b"s.toml", "a\x00b", "", ".", [], {}, 1.5, "no/such/folder/s.toml", "/dev/zero", "x" * 5000, "\ud800", Whole.THREE,
)  # fmt: skip
PLAIN = [Schedule.preset(name) for name in PRESETS]
CUTS = [dict(cut) for schedule in PLAIN for cut in schedule.cuts]
KVS = [dict(schedule.kv) for schedule in PLAIN if schedule.kv]


def values(name: str) -> tuple[Any, ...]:
    return GOOD.get(name, SWITCHES)


def names(error: LightVLMError, fields: Iterable[str]) -> bool:
    said = "\n".join([str(error), *getattr(error, "__notes__", [])])
    return any(re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z])", said) for name in fields)


def same(given: Any, held: Any) -> bool:
    """Whether `held` is what was `given`, and of its kind: an integer may be held as a float where a share was asked for."""
    if isinstance(given, list | tuple) and isinstance(held, tuple):
        return len(given) == len(held) and all(map(same, given, held))
    if isinstance(held, Method):
        if isinstance(given, dict):
            return all(same(v, held.name if k == "name" else getattr(held, k)) for k, v in given.items())
        return given is held or given == held.name or (isinstance(given, list | tuple) and list(given) == held.data)
    if given == "" and held is None:
        return True
    if isinstance(held, Cut | Kv):
        return given is held or (isinstance(given, dict) and all(same(v, getattr(held, k)) for k, v in given.items()))
    kinds = (float, int) if type(held) is float else type(held)
    return isinstance(given, bool) is isinstance(held, bool) and isinstance(given, kinds) and bool(given == held)


class Fuzz:
    """One stream of random cases; `folder` takes the files."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random, self.file = random.Random(seed), folder / "s.toml"
        self.kinds: tuple[Callable[[], None], ...] = (
            self.cut, self.kv, self.schedule, self.preset, self.preset_text, self.file_text, self.pass_text, self.pass_value, self.path,
        )  # fmt: skip
        self.case: Any = None
        self.plain = []
        for schedule in PLAIN:
            schedule.save(self.file)
            self.plain.append(self.file.read_text(encoding="utf-8"))

    def one(self) -> None:
        """Raises Wrong, or whatever crashed."""
        self.random.choice(self.kinds)()

    def options(self, usual: dict[str, Any], fields: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
        """Of a valid object one field made hostile, or many random ones; and the fields that an error may name."""
        fields = list(fields)
        if self.random.random() < 0.5:
            name = self.random.choice([*fields, "colour"])
            return usual | {name: self.random.choice(HOSTILE)}, [name]
        chosen = self.random.sample(fields, self.random.randint(0, min(6, len(fields))))
        drawn = {n: self.random.choice(values(n) if self.random.random() < 0.9 else HOSTILE) for n in chosen}
        return (usual if self.random.random() < 0.5 else {}) | drawn, fields

    def made(self, make: Callable[..., Any], options: dict[str, Any], fields: Iterable[str], *, holds: bool = True) -> Any:
        self.case = (make, options)
        try:
            thing = make(**options)
        except LightVLMError as error:
            if not names(error, fields):
                raise Wrong(f"names none of {fields}: {error}") from error
            return None
        for name, given in options.items() if holds else ():
            if given is not None and not same(given, getattr(thing, name)):
                raise Wrong(f"{name} was given {given!r}, holds {getattr(thing, name)!r}")
        return thing

    def cut(self) -> None:
        cut = self.made(Cut, *self.options(self.random.choice(CUTS), Cut.model_fields))
        alone = cut is not None and cut.score.name != "survived"  # which goes with cuts in the tower
        self.back(Schedule(cuts=[cut]) if alone else None)

    def kv(self) -> None:
        kv = self.made(Kv, *self.options(self.random.choice(KVS), Kv.model_fields))
        self.back(kv and Schedule(kv=kv))

    def schedule(self) -> None:
        usual = dict(self.random.choice(PLAIN))
        options, fields = self.options(usual, ["name", "schema_version"])
        if self.random.random() < 0.7:
            part = self.random.choice(["cuts", "kv"])
            drawn, more = self.options(self.random.choice(CUTS), Cut.model_fields)
            options |= {"cuts": [drawn]}
            if part == "kv":
                drawn, others = self.options(self.random.choice(KVS), Kv.model_fields)
                options, more = options | {"kv": drawn}, [*more, *others]
            fields = [*fields, *more]
        self.back(self.made(Schedule, options, fields))

    def preset(self) -> None:
        name = self.random.choice(list(PRESETS))
        options, fields = self.options({}, defaults(name))
        fields += ["sinks", "recent"] if len(fields) > 1 else []
        if self.random.random() < 0.1:
            name = self.random.choice(HOSTILE)
            fields = [*fields, "preset"]
        self.back(self.made(lambda **given: Schedule.preset(name, **given), options, fields, holds=False))

    def preset_text(self) -> None:
        name = self.random.choice([*PRESETS, "h2", ""])
        known = [*defaults(name), "name", "self"] if name in PRESETS else ["keep"]
        equals = ("=", "=", "=", "")
        parts = [f"{self.random.choice(known)}{self.random.choice(equals)}{self.text()}" for _ in range(self.random.randint(0, 3))]
        written = ":".join([name, *parts])
        fields = [*known, *Kv.model_fields, *Cut.model_fields, "preset", "option"]
        self.back(self.made(lambda: preset_of(written, []), {}, fields))

    def text(self) -> str:
        if self.random.random() < 0.5:
            return self.random.choice(TEXTS)
        drawn = self.random.choice(values(self.random.choice(list(GOOD))))
        return ",".join(map(str, drawn)) if isinstance(drawn, list | tuple) else str(drawn)

    def file_text(self) -> None:
        lines = self.random.choice(self.plain).splitlines()
        fields = ["schedule file"]
        for _ in range(self.random.randint(1, 2)):
            at = self.random.randrange(len(lines))
            how = self.random.randrange(6)
            if how < 3:
                key, equals, _ = lines[at].partition(" = ")
                table = self.random.choice(["[kv]", "[[kv]]", "[cuts]", "[self]", "["])
                lines[at] = f"{key} = {self.random.choice(TOML)}" if equals else table
                fields += [key]
            elif how == 3:
                del lines[at]
                lines = lines or [""]
            elif how == 4:
                lines.insert(at, self.random.choice(lines))
            else:
                letters = list(lines[at] or " ")
                letters[self.random.randrange(len(letters))] = self.random.choice("\0\t\x1b\"'=[é\N{GRINNING FACE}-.1_")
                lines[at] = "".join(letters)
        content = "\n".join(lines).encode()
        if self.random.random() < 0.05:
            content = content[: self.random.randrange(len(content) + 1)] + bytes([self.random.randrange(256)])
        self.file.write_bytes(content)
        self.case = content
        self.back(self.made(lambda: Schedule.load(self.file), {}, fields))

    def path(self) -> None:
        path = self.random.choice(PATHS)
        for verb in (Schedule.load, PLAIN[0].save):
            self.case = (verb, path)
            try:
                verb(path)
            except LightVLMError as error:
                if "schedule file" not in str(error):
                    raise Wrong(f"does not say what the path is for: {error}") from error
            else:
                raise Wrong(f"{path!r} is no path of a schedule file")

    def pass_text(self) -> None:
        written = str(self.random.choice(EXAMPLES))
        fields = ["name{option=value", "pass", "option"]
        how = self.random.randrange(3)
        if how == 0:
            kind = CATALOGUE[self.random.choice(list(CATALOGUE))]
            known = [f.name for f in dataclasses.fields(kind)] or ["layer"]
            parts = [f"{self.random.choice([*known, 'layr'])}={self.text()}" for _ in range(self.random.randint(1, 4))]
            written, fields = f"{kind.name}{{{','.join(parts)}}}", [*fields, *known]
        elif how == 1:
            letters = list(written)
            letters[self.random.randrange(len(letters))] = self.random.choice("{}=,/-\x1b 0aé")
            written = "".join(letters)
            fields += [f.name for kind in CATALOGUE.values() for f in dataclasses.fields(kind)]
        else:
            written = self.random.choice([*HOSTILE, written])
            fields += ["pipeline"]
        pipeline = self.made(lambda: Pipeline.parse(written), {}, fields)
        if pipeline is not None and Pipeline.parse(str(pipeline)).passes != pipeline.passes:
            raise Wrong(f"{pipeline} does not parse back")

    def pass_value(self) -> None:
        example = self.random.choice(EXAMPLES)
        usual = {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}
        options, fields = self.options(usual, usual)
        options.pop("colour", None)  # Python's own affair
        made = self.made(type(example), options, fields)
        if made is not None and Pipeline.parse(str(made)).passes != (made,):
            raise Wrong(f"{made} does not parse back")

    def back(self, schedule: Schedule | None) -> None:
        """A valid schedule reads back equal, and says of a model either what it does or why it cannot."""
        if schedule is None:
            return
        schedule.save(self.file)
        again = Schedule.load(self.file)
        json = Schedule.model_validate_json(schedule.model_dump_json())
        for other in (again, json):
            if (other, hash(other), other.fingerprint) != (schedule, hash(schedule), schedule.fingerprint):
                raise Wrong(f"{schedule!r} reads back as {other!r}")
        asked: tuple[Callable[[], Any], ...] = (
            lambda: schedule.layers(8), lambda: schedule.budgets(576), lambda: schedule.kv and schedule.kv.capacities(640, 8),
        )  # fmt: skip
        for ask in asked:
            try:
                ask()
            except LightVLMError as error:
                if not names(error, ["layer", "layers", "capacity", "keep", "budgets"]):
                    raise Wrong(f"names no field: {error}") from error


def run(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """How many of `count` cases were clear, wrong and crashed; and what the first of the last two were."""
    found: Counter[str] = Counter(clear=0, wrong=0, crash=0)
    examples = []
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(seed, Path(folder))
        for number in range(count):
            try:
                fuzz.one()
                found["clear"] += 1
            except Exception as error:
                kind = "wrong" if isinstance(error, Wrong) else "crash"
                found[kind] += 1
                if len(examples) < 20:
                    examples.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:500]}\n  given {shown(fuzz.case, 500)}")
    return found, examples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found, examples = run(given.count, given.seed)
    for example in examples:
        print(example.encode("ascii", "backslashreplace").decode())
    print("schedules: " + ", ".join(f"{n} {kind}" for kind, n in found.items()))
    sys.exit(found["clear"] != given.count)


if __name__ == "__main__":
    main()
