"""`lightvlm bench gpu`: every check and benchmark that needs a GPU, in one run that always leaves what it found.

Each part runs in a process of its own, so that neither a failure nor a hang nor a device in disorder takes the others with it; the
tables are written anew after each.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from lightvlm_fx.bench.gpu_parts import Found, Kit, Table, parts
from lightvlm_fx.bench.prefill import machine, shape
from lightvlm_fx.errors import InputError, UnknownName

Verdict = Literal["passed", "failed", "skipped", "not run"]
LEAST = 20  # seconds, under which no part is begun


@dataclass(frozen=True)
class Result:
    """One part: what became of it, what it says, its tables."""

    part: str
    verdict: Verdict
    said: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.verdict in ("passed", "skipped")


def run(
    kit: Kit, names: Sequence[str] = (), *, minutes: float = 25.0, folder: Path | None = None, apart: bool = True,
    tell: Callable[[str], None] = lambda what: None,
) -> list[Result]:  # fmt: skip
    """Run the parts `names`, or those that begin with such a word (none: all), as far as `minutes` reach.

    `folder` gets gpu.md, gpu.json and gpu.log, anew after each part. Without `apart` parts run in this process, where nothing ends one
    that takes too long. Raises InputError for a CUDA device that is not there, UnknownName for a part or shape that does not exist.
    """
    if kit.cuda and not torch.cuda.is_available():
        raise InputError(f"device {kit.device!r} is not there: torch {torch.__version__} sees no CUDA device; --device cpu (make gpu "
                         "DEVICE=cpu) runs the same at tiny shapes")  # fmt: skip
    for name in kit.shapes:
        shape(name)
    known = parts(kit)
    for name in names:
        if name not in {*known, *(part.split()[0] for part in known)}:
            raise UnknownName.of("part", name, known)
    wanted = [part for part in known if not names or {part, part.split()[0]} & {*names}]
    deadline = time.monotonic() + 60 * minutes
    results: list[Result] = []
    for name in wanted:
        tell(f"{name} ({len(results) + 1} of {len(wanted)})")
        left = deadline - time.monotonic()
        start = time.perf_counter()
        if left < LEAST:
            result = Result(name, "not run", [f"the {minutes:g} minutes were over"])
        else:
            result = _apart(kit, name, left, folder) if apart else _here(kit, name)
        results.append(dataclasses.replace(result, seconds=time.perf_counter() - start))
        if folder is not None:
            write(kit, results, folder)
    return results


def _here(kit: Kit, name: str) -> Result:
    """A part in this process; whatever it raises is its failure."""
    try:
        found: Found = parts(kit)[name](kit)
    except Exception:  # reported, and the exit code tells
        return Result(name, "failed", [traceback.format_exc()])
    if found.skipped:
        return Result(name, "skipped", [found.skipped])
    return Result(name, "failed" if found.wrong else "passed", found.wrong, found.tables)


def _apart(kit: Kit, name: str, seconds: float, folder: Path | None) -> Result:
    """A part in a process of its own, which is ended after `seconds`."""
    command = [sys.executable, "-W", "ignore", "-m", __name__, json.dumps({"kit": dataclasses.asdict(kit), "name": name})]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, env=os.environ)
    except subprocess.TimeoutExpired as error:
        _log(folder, name, error.stderr)
        return Result(name, "failed", [f"ended after {seconds:.0f} s: the time was over"])
    _log(folder, name, done.stderr)
    if done.returncode:
        return Result(name, "failed", [f"its process ended with {done.returncode}: {done.stderr[-2000:]}"])
    read = json.loads(done.stdout.splitlines()[-1])
    tables = [Table(t["title"], tuple(t["columns"]), [tuple(row) for row in t["rows"]]) for t in read.pop("tables")]
    return Result(**read, tables=tables)


def _log(folder: Path | None, name: str, text: str | bytes | None) -> None:
    if folder is None or not text:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gpu.log").open("a", encoding="utf-8") as log:
        log.write(f"--- {name}\n{text if isinstance(text, str) else text.decode(errors='replace')}\n")


def write(kit: Kit, results: Sequence[Result], folder: Path) -> None:
    """gpu.md for readers and gpu.json for programs."""
    folder.mkdir(parents=True, exist_ok=True)
    where = machine(kit.device)
    data = {"machine": where, "kit": dataclasses.asdict(kit), "parts": [dataclasses.asdict(result) for result in results]}
    (folder / "gpu.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    lines = ["# lightvlm bench gpu", "", where, ""]
    for result in results:
        lines += [f"## {result.part}: {result.verdict}, {result.seconds:.0f} s", ""]
        for said in result.said:
            lines += ["```", said.rstrip(), "```", ""]
        for table in result.tables:
            lines += [f"### {table.title}", "", *map(_line, (table.columns, ["---"] * len(table.columns), *table.rows)), ""]
    (folder / "gpu.md").write_text("\n".join(lines), encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _main(given: dict[str, Any]) -> None:
    known = given["kit"]
    kit = Kit(**{name: tuple(x) if isinstance(x, list) else x for name, x in known.items()})
    torch.backends.cudnn.allow_tf32 = False  # towers' convolutions in float32, as on the processor
    print(json.dumps(dataclasses.asdict(_here(kit, given["name"]))))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
