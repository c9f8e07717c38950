"""Is everything listed, documented, tested, and does every import point the right way? Instant."""

import ast
import dataclasses
import functools
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from matrices import QUICK
from ops import test_opcheck

import lightvlm_fx
from lightvlm_fx import errors, methods_page, presets
from lightvlm_fx.methods import operators
from lightvlm_fx.methods.base import ARGUMENTS, ATTENTION
from lightvlm_fx.methods.registry import BUDGETS, COMBINES, ENTRY_MERGES, ENTRY_SCORES, TOKEN_SCORES
from lightvlm_fx.passes import CATALOGUE, EXAMPLES
from lightvlm_fx.passing.pass_base import Pass

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightvlm_fx"
NO_PASS = {"__init__", "pipelines"}
PASS_FILES = sorted(p for p in (ROOT / "passes").glob("*.py") if p.stem not in NO_PASS)
OP_FILES = sorted(p for p in (PACKAGE / "ops").glob("*.py") if p.stem not in {"__init__", "segments"})
# Rooms of the package from the ground up; a file imports from rooms below its own, and from its own.
LEVELS = (
    ("carries", "errors", "shares", "spans"),
    ("frozen", "quiet", "releases", "version"),
    ("compat", "artifact"),  # what runs artifacts knows of nothing but errors and spans
    ("ops",),
    ("methods",),
    ("kv",),
    ("schedule",),
    ("presets",),
    ("graph",),
    ("passing",),
    ("passes",),
    ("model",),
    ("exporters",),
    ("runtime",),
    ("explanation",),
    ("compiler",),
    ("calibration", "pictures"),
    ("exporting",),
    ("bundled", "zoo"),
    ("testing", "support", "methods_page", "bench", "eval", "serving"),
    ("support_methods",),
    ("cli", "integrations"),
    ("__init__", "__main__"),
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
# What a function asks for when it is called, upwards: names looked up in a catalogue.
LAZY = {("passing.pipeline", "passes"), ("schedule", "presets")}


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def used_by_tests(folder):
    """Texts in the code of the test files below a folder of tests/, and what is called or looked up, with a point before it.

    Comments, docstrings and imports do not count. A text with something put in, such as f"score_{name}", is its beginning with each text
    of the same file after it: names that a test is parametrised over stand there.
    """
    found = set()
    for path in sorted((ROOT / "tests" / folder).rglob("test_*.py")):
        if path.name == "test_catalogue.py":
            continue
        top = tree(path)
        said = {id(n.value) for n in ast.walk(top) if isinstance(n, ast.Expr)}  # docstrings, and what else is only said
        texts = {n.value for n in ast.walk(top) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in said}
        found |= texts
        for node in ast.walk(top):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found.add(f".{node.func.id}")
            elif isinstance(node, ast.Attribute):
                found.add(f".{node.attr}")
            elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                found |= {f"{node.values[0].value}{text}" for text in texts}
    return found


RUN = {"preset", "compile", "with_schedule", "compiled"}  # what takes a preset's name and gives what runs


def entries(node, tables):
    """Texts that a table lists at its top: keys, elements, or what stands directly in an element; tables by name are those of the file."""
    if isinstance(node, ast.Name) and node.id in tables:
        return entries(tables[node.id], {})
    if isinstance(node, ast.Starred):
        return entries(node.value, tables)
    if isinstance(node, ast.BinOp):
        return entries(node.left, tables) | entries(node.right, tables)
    parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
    found = {part.value for part in parts if isinstance(part, ast.Constant)}
    for part in parts:
        inner = part.elts if isinstance(part, ast.Tuple) else part.args if isinstance(part, ast.Call) else []
        found |= {x.value for x in inner if isinstance(x, ast.Constant)}
        found |= entries(part, tables) if isinstance(part, ast.Starred) else set()
    return found


@functools.cache
def run_by_parity_tests():
    """Names of presets that tests in tests/parity run: given to what makes schedules or models, or in a table of `parametrize`.

    Not where an error is expected.
    """
    found = set()
    for path in sorted((ROOT / "tests" / "parity").rglob("test_*.py")):
        top = tree(path)
        tables = {t.id: n.value for n in top.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        failing = [n for n in ast.walk(top) if isinstance(n, ast.With) and "pytest.raises" in ast.unparse(n.items[0])]
        refused = {id(inner) for block in failing for inner in ast.walk(block)}
        for call in (n for n in ast.walk(top) if isinstance(n, ast.Call) and id(n) not in refused):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in RUN:
                found |= {arg.value for arg in call.args if isinstance(arg, ast.Constant)}
            elif name == "parametrize":
                found |= entries(call.args[1], tables)
    return found


@functools.cache
def expected_by_tests():
    """Names of the errors that tests expect: inside of `raises(...)`, in a table of cases, or handed to a helper."""
    found = set()
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        top = tree(path)
        given = (node for call in ast.walk(top) if isinstance(call, ast.Call) for node in [*call.args, *(k.value for k in call.keywords)])
        found |= {n.id for arg in given for n in ast.walk(arg) if isinstance(n, ast.Name)}
    return found


# --- passes ----------------------------------------------------------------------------------------------


def passes_in(path):
    """Names of the passes that a file defines: frozen dataclasses on Pass."""
    return [
        n.name
        for n in tree(path).body
        if isinstance(n, ast.ClassDef) and any(getattr(b, "id", "") == "Pass" for b in n.bases)
    ]


@pytest.mark.parametrize("path", PASS_FILES, ids=lambda p: p.stem)
def test_a_file_is_one_pass_in_the_catalogue_under_its_name(path):
    (cls,) = passes_in(path)
    name = path.stem.replace("_", "-")
    assert CATALOGUE[name].__name__ == cls
    assert cls == "".join(word.capitalize() for word in path.stem.split("_"))
    assert CATALOGUE[name].name == name


def test_the_catalogue_holds_nothing_else():
    assert {name.replace("-", "_") for name in CATALOGUE} == {p.stem for p in PASS_FILES}


@pytest.mark.parametrize("pass_", CATALOGUE.values(), ids=CATALOGUE)
def test_a_pass_says_what_it_does(pass_):
    """Before, After, Ensures and Source in its docstring; a frozen value with defaults."""
    for heading in ("Before:", "After:", "Ensures:", "Source:"):
        assert re.search(rf"^{heading} +\S", inspect.getdoc(pass_), re.MULTILINE), f"no {heading} in {pass_.__name__}"
    assert issubclass(pass_, Pass)
    assert pass_.__dataclass_params__.frozen
    assert set(pass_.stages) <= {"vision", "prefill", "decode"}
    assert set(pass_.after) <= set(CATALOGUE)
    assert all(f.default is not dataclasses.MISSING for f in dataclasses.fields(pass_))


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_pass_has_an_example_and_a_test_file_with_a_golden_and_a_refusal(name):
    assert any(example.name == name for example in EXAMPLES)
    tests = (ROOT / "tests" / "passes" / f"test_{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    assert CATALOGUE[name].__name__ in tests
    assert re.search(r"^def test_\w+\(.*golden.*\):", tests, re.MULTILINE)
    assert "def test_refuses_" in tests


# --- ops -------------------------------------------------------------------------------------------------


def registered_ops():
    names = torch._C._dispatch_get_all_op_names()
    return sorted({name.split("::")[1].split(".")[0] for name in names if name.startswith("lightvlm::")})


def op_functions():
    """Functions decorated as custom ops, by the name they register."""
    found = {}
    for path in OP_FILES:
        for node in tree(path).body:
            for mark in getattr(node, "decorator_list", []):
                if "custom_op" in ast.unparse(mark):
                    found[mark.args[0].value.removeprefix("lightvlm::")] = (path, node)
    return found


def test_every_registered_op_has_a_file_of_its_name_or_follows_from_a_method():
    assert registered_ops() == sorted([*op_functions(), *operators.every()])
    for name, (path, node) in op_functions().items():
        assert (path.stem, node.name) == (name, name)


@pytest.mark.parametrize("name", op_functions())
def test_an_op_says_its_shapes_and_is_tested(name):
    _, node = op_functions()[name]
    doc = ast.get_docstring(node) or ""
    assert re.search(r"\[B, ", doc), f"{name}: no shape such as [B, S] in its docstring"
    tensors = [a.arg for a in node.args.args if "Tensor" in ast.unparse(a.annotation)]
    silent = [a for a in tensors if not re.search(rf"\b{a}\b", doc)]
    assert not silent, f"{name}: nothing about {silent} in its docstring"
    assert {name, f".{name}"} & used_by_tests("ops"), f"no test in tests/ops calls {name}"
    assert name in test_opcheck.arguments(), f"tests/ops/test_opcheck.py does not run {name}"


# --- methods ---------------------------------------------------------------------------------------------

REGISTRIES = (TOKEN_SCORES, COMBINES, ENTRY_SCORES, ENTRY_MERGES, BUDGETS)
METHODS = [kind for registry in REGISTRIES for kind in registry.all() if kind.__module__.startswith("lightvlm_fx.")]


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: f"{kind.what} {kind.name}")
def test_a_method_is_a_file_of_its_name_that_says_what_it_does_and_whose_it_is(kind):
    assert kind.__module__.rpartition(".")[2].replace("_", "-") == kind.name
    assert len(kind.__doc__) > 20
    assert re.search(r"arXiv:? \d{4}\.\d{5}|ours|baseline", kind.source)
    assert set(kind.reads) <= set(ARGUMENTS)
    assert kind.reads == tuple(name for name in ARGUMENTS if name in kind.reads) or set(kind.reads) >= set(ATTENTION)


SCHEDULES = {name: lightvlm_fx.Schedule.preset(name) for name in presets.PRESETS}


@pytest.mark.parametrize("name", operators.every())
def test_what_a_method_computes_is_tested(name):
    kind, _ = operators.every()[name]
    published = {name for name, made in SCHEDULES.items() if kind in {type(cut.score) for cut in (*made.cuts, *made.tower)}}
    called = {name, f".{name}"} & used_by_tests("ops")
    assert called or {kind.name, *published} & used_by_tests("parity"), f"no test in tests/ops or tests/parity runs {name}"
    assert name in test_opcheck.arguments(), f"tests/ops/test_opcheck.py does not run {name}"


# --- presets, errors, public names ------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_is_documented_builds_and_is_tested(name):
    preset = presets.PRESETS[name]
    assert preset.__name__.replace("_plus", "+").replace("_", "-") == name
    assert re.search(r"arXiv \d{4}\.\d{5}|Baseline|baseline", preset.__doc__), f"{name} names no source"
    assert lightvlm_fx.Schedule.preset(name).name == name
    assert name in run_by_parity_tests(), f"no test in tests/parity runs preset {name}"


def test_every_error_is_documented_and_tested():
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, errors.LightVLMError):
            assert error.__doc__
            assert name in expected_by_tests(), f"no test expects {name}"


def test_public_names_resolve():
    for name in lightvlm_fx.__all__:
        assert getattr(lightvlm_fx, name) is not None
    assert set(lightvlm_fx.__all__) <= set(dir(lightvlm_fx))
    with pytest.raises(AttributeError, match="module 'lightvlm_fx' has no attribute 'complie'"):
        _ = lightvlm_fx.complie


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module", ["lightvlm_fx", "lightvlm_fx.schedule", "lightvlm_fx.presets", "lightvlm_fx.errors"]
)
def test_importing_needs_neither_torch_nor_transformers(module):
    done = python(
        f"import sys, {module}; print(sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_verbs_stay_verbs_when_their_modules_are_imported():
    """A submodule named like a verb would take its place in the package."""
    modules = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem not in ("__init__", "__main__"))
    assert not set(modules) & set(lightvlm_fx.__all__)


# --- direction of imports ----------------------------------------------------------------------------------


def room(module):
    """The part of the package that a module is in; `lightvlm_fx` itself, whose verbs are looked up on use, is above all."""
    return module.split(".")[1] if "." in module else "__init__"


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("lightvlm_fx", *parts) if parts[0] in ("passes", "exporters") else parts).removesuffix(
        ".__init__"
    )


def imports(path):
    """(module, whether only when a function is called) of everything of ours that a file imports."""
    top = tree(path)
    lazy = {id(n) for f in ast.walk(top) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(top):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightvlm_fx"):
            names = (
                [f"{node.module}.{a.name}" for a in node.names]
                if node.module == "lightvlm_fx"
                else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("lightvlm_fx")]
        else:
            continue
        for name in names:
            yield name, id(node) in lazy


SOURCES = sorted(
    p for folder in ("lightvlm_fx", "passes", "exporters") for p in (ROOT / folder).rglob("*.py")
)
SOURCES = [
    p
    for p in SOURCES
    if p.relative_to(ROOT).parts[:2] not in (("lightvlm_fx", "passes"), ("lightvlm_fx", "exporters"))
]


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_point_down(path):
    mine = module_of(path)
    for other, lazy in imports(path):
        if lazy and (mine.removeprefix("lightvlm_fx."), room(other)) in LAZY:
            continue
        if other == "lightvlm_fx" and LEVEL[room(mine)] >= LEVEL["testing"]:  # the front door may use the public names
            continue
        assert LEVEL[room(other)] <= LEVEL[room(mine)], f"{mine} imports {other}, which stands above it"


def test_what_runs_artifacts_knows_of_nothing_else():
    for path in SOURCES:
        if room(module_of(path)) == "artifact":
            assert {room(other) for other, _ in imports(path)} <= {"artifact", "errors", "shares", "spans"}, path


def test_every_room_has_a_level_and_no_other():
    assert {room(module_of(path)) for path in SOURCES} == set(LEVEL)


def test_only_the_front_door_imports_the_zoo_and_the_test_helpers():
    for path in SOURCES:
        if LEVEL[room(module_of(path))] < LEVEL["zoo"]:
            assert not {"zoo", "testing"} & {room(name) for name, _ in imports(path)}, path


# --- goldens -----------------------------------------------------------------------------------------------


def test_no_golden_is_left_behind():
    """Every golden text belongs to a test function that asks for one."""
    wanted = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        wanted[path.stem] = [
            n.name
            for n in ast.walk(tree(path))
            if isinstance(n, ast.FunctionDef) and any(a.arg == "golden" for a in n.args.args)
        ]
    for text in (ROOT / "tests" / "golden").rglob("*.txt"):
        owners = wanted.get(text.parent.name, [])
        assert any(text.stem == name or text.stem.startswith(name + "_") for name in owners), (
            f"{text} belongs to no test"
        )


# --- pages -------------------------------------------------------------------------------------------------


def test_the_page_of_methods_is_current():
    assert methods_page.PAGE.read_text(encoding="utf-8") == methods_page.page(), "run `make docs`"


def test_every_folder_of_code_is_packaged():
    """The list is written by hand, because two of the packages stand at the top of the repository."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert folders | {"lightvlm_fx.passes", "lightvlm_fx.exporters"} == set(listed)


def test_every_matrix_that_is_cut_short_is_there():
    """Each entry of QUICK names a test."""
    for name, cases in QUICK.items():
        file, function = name.split("::")
        [path] = (ROOT / "tests").rglob(file)
        assert re.search(rf"^def {function}\(", path.read_text(encoding="utf-8"), re.MULTILINE), name
        assert re.compile(cases)
