"""Writes docs/api.md from the docstrings: `python docs/api.py`. Reads the source; needs neither torch nor transformers."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightvlm_fx.presets.lookup import PRESETS, ordered

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
COMMAND = "python docs/api.py"
WIDTH = 119
ALL = None
# headings; of each file which names, and of a class which methods (ALL: every public one that says what it is for)
SECTIONS: dict[str, dict[str, dict[str, tuple[str, ...] | None] | None]] = {
    "Compiling": {
        "compiler.py": {"compile": ALL, "Handle": ALL}, "explanation.py": {"explain": ALL, "Explanation": ALL},
        "passing/report.py": {"Report": ALL},
    },
    "Artifacts": {
        "exporting/export.py": {"export": ALL, "Artifact": ALL}, "artifact/load.py": {"load": ALL, "VLM": ("generate", "vocabulary")},
        "artifact/verify.py": {"verify": ALL, "Verdict": ALL},
    },
    "Schedules": {
        "schedule.py": {"Schedule": ("preset", "load", "save", "fingerprint"), "Cut": (), "TowerCut": ()}, "kv.py": {"Kv": ()},
        "calibration.py": {"outlier_share": ALL, "layer_contributions": ALL},
    },
    "Presets": {f"presets/{PRESETS[name].__module__.rpartition('.')[2]}.py": ALL for name in ordered()},
    "Errors": {"errors.py": ALL},
    "To extend it": {
        "methods/base.py": {
            "Method": (), "View": (), "ARGUMENTS": (), "TokenScore": ALL, "AttentionScore": (), "TokenCount": ALL, "Picture": ("sides",),
            "Combine": ALL, "EntryScore": ALL, "EntryMerge": ALL, "Budget": ALL,
        },
        "passing/pass_base.py": {"Pass": ALL, "PassResult": ()}, "passing/pipeline.py": {"Pipeline": ALL},
        "graph/program.py": {"Program": ("clone", "first", "markers", "segment_at", "sequence", "add_input", "add_ruler", "add_weight")},
        "graph/ports.py": {"Port": ("at",)},
        "artifact/targets.py": {"Target": ALL}, "exporters/base.py": {"Exporter": ALL, "StageExport": ()},
        "testing.py": dict.fromkeys(("tiny_program", "tiny_programs", "real_inputs", "run", "check_pass"), ALL),
    },
    "In other systems": {
        "bundled/__init__.py": {"load": ALL},
        "serving/limits.py": {"Limits": ALL}, "serving/sources.py": {"Sources": ()}, "serving/opening.py": {"open_engine": ALL},
        "integrations/ray.py": dict.fromkeys(("answer", "answer_into", "deployment"), ALL),
        "integrations/olive.py": {"LightVLM": (), "Questions": (), "package_config": ALL},
        "integrations/deploy.py": {"triton": ALL, "kserve": ALL},
    },
}  # fmt: skip
BY_PATH = ("To extend it", "In other systems")  # sections whose names are told with where they are imported from
HELPERS = {"Options", "shown"}  # what those files hold beside presets and errors
HEAD = f"""# The public interface

Written by `{COMMAND}` from the docstrings, and a test holds it to them. What is not on this page may change
without notice.

`import lightvlm_fx as lightvlm` gives the verbs and most classes of the first three sections. A compiled model has
its `Handle` as `fast.lightvlm`, a schedule its `Kv` as `schedule.kv`, and `load` returns the `VLM`. A preset is asked
for by its name, with `-` for `_`: `Schedule.preset("streaming-llm", capacity=96)`. What a cut's `score` and `combine`
and a cache's `score`, `budgets`, `merge` and `when` can be: [methods](methods.md). The last two sections name what
they hold by where it is imported from; how it is used: [extend](add-a-pass.md), [in other systems](integrations.md).
"""


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes that say what they are for."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and ast.get_docstring(node):
            yield node


def constants(body: list[ast.stmt]) -> Iterator[ast.Assign]:
    """Assignments of a name."""
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node


def signature(node: ast.FunctionDef) -> str:
    """As the source has it, one argument a line where one line is too short."""
    back = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if "property" in map(ast.unparse, node.decorator_list):
        return f"{node.name}{back}"
    args = node.args
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    parts = [_argument(arg, default) for arg, default in zip(plain, defaults, strict=True) if arg.arg not in ("self", "cls")]
    parts += [f"*{args.vararg.arg}"] if args.vararg else ["*"] if args.kwonlyargs else []
    parts += [_argument(arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    parts += [f"**{args.kwarg.arg}"] if args.kwarg else []
    line = f"{node.name}({', '.join(parts)}){back}"
    return line if len(line) <= WIDTH else f"{node.name}(\n    " + ",\n    ".join(parts) + f",\n){back}"


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
    kind = f": {ast.unparse(_Plain().visit(arg.annotation))}" if arg.annotation else ""
    return f"{arg.arg}{kind}" + ("" if default is None else f"{' = ' if kind else '='}{ast.unparse(default)}")


def fields(node: ast.ClassDef, lines: list[str]) -> list[str]:
    """The fields of a class, with the comments beside and above them."""
    found = [part for part in node.body if isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_")]
    if not found:
        return []
    first, last = found[0].lineno - 1, found[-1].end_lineno
    shown = list(lines)
    for part in found:
        written, plain = ast.unparse(part.annotation), ast.unparse(_Plain().visit(part.annotation))
        if written != plain:
            line = lines[part.lineno - 1]
            end = part.annotation.end_col_offset
            shown[part.lineno - 1] = line[: part.annotation.col_offset] + plain + line[end:]
    return [short for line in shown[first:last] for short in _above(line.removeprefix("    "))]


class _Plain(ast.NodeTransformer):
    """Types without what checks their values: of `Annotated[int, ...]` the `int`."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return node


def _above(line: str) -> list[str]:
    """A line of source; a comment that makes it too long stands above it."""
    code, mark, comment = line.partition("# ")
    if len(line) <= WIDTH or not mark:
        return [line]
    return textwrap.wrap(f"# {comment}", WIDTH, subsequent_indent="# ") + [code.rstrip()] * bool(code.strip())


def prose(node: ast.FunctionDef | ast.ClassDef) -> str:
    """A docstring, paragraph by paragraph."""
    return "\n\n".join(textwrap.fill(part, WIDTH) for part in (ast.get_docstring(node) or "").split("\n\n"))


def entry(
    node: ast.FunctionDef | ast.ClassDef | ast.Assign, lines: list[str], wanted: tuple[str, ...] | None, home: str = ""
) -> str:
    """A name, after `home`, its signature, fields or value, and its docstring, or the comment above it."""
    if isinstance(node, ast.Assign):
        code = [short for line in lines[node.lineno - 1 : node.end_lineno] for short in _above(line)]
        said = textwrap.fill(lines[node.lineno - 2].removeprefix("# "), WIDTH)
        return f"### `{home}{ast.unparse(node.targets[0])}`\n\n{said}\n\n```python\n" + "\n".join(code) + "\n```\n"
    if isinstance(node, ast.FunctionDef):
        return f"### `{home}{node.name}`\n\n```python\n{signature(node)}\n```\n\n{prose(node)}\n"
    own = fields(node, lines)
    found = {part.name: part for part in public(node.body) if isinstance(part, ast.FunctionDef)}
    chosen = found.values() if wanted is ALL else [found[name] for name in wanted]
    return "\n".join([
        f"### `{home}{node.name}`\n\n{prose(node)}\n",
        *(["```python\n" + "\n".join(own) + "\n```\n"] if own else []),
        *(f"#### `{node.name}.{part.name}`\n\n```python\n{signature(part)}\n```\n\n{prose(part)}\n" for part in chosen),
    ])


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, files in SECTIONS.items():
        parts.append(f"## {title}\n")
        for file, names in files.items():
            source = (ROOT / "lightvlm_fx" / file).read_text(encoding="utf-8")
            nodes: dict[str, Any] = {node.name: node for node in public(ast.parse(source).body) if node.name not in HELPERS}
            wanted = dict.fromkeys(nodes, ALL) if names is ALL else names
            nodes |= {ast.unparse(node.targets[0]): node for node in constants(ast.parse(source).body)}
            home = f"lightvlm_fx.{file.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}." if title in BY_PATH else ""
            parts += [entry(nodes[name], source.splitlines(), chosen, home) for name, chosen in wanted.items()]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
