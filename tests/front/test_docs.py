"""What the docs show works: README's code runs, commands parse, links lead somewhere, the interface's page is current."""

import functools
import re
import shlex
import subprocess
import sys

import pytest
import typer
from built import ROOT

import lightvlm_fx as lightvlm
from lightvlm_fx.cli import artifact, bench, serve  # noqa: F401  (they add their commands)
from lightvlm_fx.cli import main as cli
from lightvlm_fx.presets import PRESETS

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
# with lines of at most 119 letters
WRITTEN = ("README.md", "tutorial.md", "glossary.md", "faq.md", "comparison.md", "api.md", "integrations.md")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_readmes_code_runs(tmp_path, monkeypatch, capsys):
    """As it stands, one block after the other; only the compiler is the eager one, which takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lightvlm, "compile", functools.partial(lightvlm.compile, backend="eager"))
    names = {}
    found = blocks(README, "python")
    assert found
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    text = capsys.readouterr().out
    assert "ideal speed-up" in text
    assert text.strip().endswith("['eight']")
    prompt = names["inputs"]["input_ids"].shape[1]
    assert names["tokens"][:, prompt:].tolist() == names["answer"].tolist()


def test_the_interfaces_page_is_current():
    """Else: python docs/api.py."""
    code = "import sys; sys.path.insert(0, 'docs'); import api; sys.exit(api.page() != api.PAGE.read_text(encoding='utf-8'))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_interfaces_page_names_everything_public():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^### `(\w+)`$", text, re.MULTILINE))
    assert set(lightvlm.__all__) - {"__version__"} <= headings
    assert {preset.__name__ for preset in PRESETS.values()} <= headings


def commands():
    """Every call of `lightvlm` in the shell blocks of the pages."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("lightvlm "):
                    yield pytest.param(line.split("  # ")[0], id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("line", [*commands()])
def test_a_command_in_the_docs_has_these_options(line):
    command, words, context = typer.main.get_command(cli.app), shlex.split(line)[1:], None
    while hasattr(command, "resolve_command"):  # a group: lightvlm, or lightvlm bench
        context = command.make_context("lightvlm", words, parent=context, resilient_parsing=True)
        _, command, words = command.resolve_command(context, words)
        assert command is not None
    command.make_context(line, words, parent=context)


def links():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                yield pytest.param(page, target, id=f"{page.name}: {target}")


def anchors(page):
    """The anchors that a page's headings have where it is shown."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize(("page", "target"), [*links()])
def test_a_link_leads_somewhere(page, target):
    path, _, anchor = target.partition("#")
    to = (page.parent / path).resolve() if path else page
    assert to.exists()
    assert not anchor or anchor in anchors(to)


@pytest.mark.parametrize("page", [p for p in PAGES if p.name in WRITTEN], ids=lambda p: p.name)
def test_lines_are_short(page):
    """But for tables, whose rows are lines."""
    long = [line for line in page.read_text(encoding="utf-8").splitlines() if len(line) > 119 and not line.startswith("|")]
    assert not long
