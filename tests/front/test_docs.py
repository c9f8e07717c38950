"""What the docs show works: README's code runs, commands parse, links lead somewhere, the interface's page is current."""

import functools
import re
import shlex
import subprocess
import sys
from types import FunctionType, SimpleNamespace

import pytest
import torch
import typer
from built import ROOT
from transformers import Qwen2VLImageProcessor

import lightvlm_fx as lightvlm
from lightvlm_fx import bundled
from lightvlm_fx.artifact.verify import Verdict
from lightvlm_fx.cli import artifact, bench, serve  # noqa: F401  (they add their commands)
from lightvlm_fx.cli import main as cli
from lightvlm_fx.compiler import Handle
from lightvlm_fx.exporting.export import Artifact
from lightvlm_fx.pictures import open_picture, prompt
from lightvlm_fx.presets import PRESETS

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))


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


@torch.no_grad()
def test_smaller_pictures_for_a_tower_of_one_size():
    """The page's code; its answers are those of a processor that makes smaller pictures and of a tower told to take them."""
    model, processor = bundled.load.__wrapped__()
    package = SimpleNamespace(compile=functools.partial(lightvlm.compile, backend="eager"), Schedule=lightvlm.Schedule)
    names = {"model": model, "lightvlm": package}
    exec(compile(blocks(ROOT / "docs" / "faq.md", "python")[0], "faq.md", "exec"), names)
    pictures = [open_picture(path) for path in sorted(bundled.PICTURES.glob("*.png"))[:2]]

    def asked():
        text = [prompt(processor, "how many objects are there ?", pictures=2)]
        return processor(images=[picture.resize((96, 96)) for picture in pictures], text=text, return_tensors="pt")

    inputs = asked()
    found = names["smaller"](**inputs).logits[:, -1]
    processor.image_processor.size = processor.image_processor.crop_size = {"height": 48, "width": 48}
    tower = model.get_encoder(modality="image")
    tower.register_forward_pre_hook(lambda module, args, given: (args, given | {"interpolate_pos_encoding": True}), with_kwargs=True)
    model.config.image_seq_length = 36
    inputs = asked()
    assert int((inputs["input_ids"] == model.config.image_token_index).sum()) == 2 * 36
    wanted = model(**inputs).logits[:, -1]
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= 0.05  # a processor rounds pixels to bytes
    assert names["smaller"].lightvlm.survivors["index.0"].shape[1] == inputs["input_ids"].shape[1]


@pytest.mark.filterwarnings("ignore")
def test_smaller_pictures_for_a_tower_of_any_size():
    processor = SimpleNamespace(image_processor=Qwen2VLImageProcessor())
    picture = open_picture(bundled.PICTURES / "1-crowd.png").resize((1500, 1000))

    def tokens():
        return int(processor.image_processor(images=[picture], return_tensors="pt")["image_grid_thw"].prod()) // 4

    assert tokens() > 256
    exec(compile(blocks(ROOT / "docs" / "faq.md", "python")[1], "faq.md", "exec"), {"processor": processor})
    assert 200 < tokens() <= 256


def test_the_interfaces_page_is_current():
    """Else: python docs/api.py."""
    code = "import sys; sys.path.insert(0, 'docs'); import api; sys.exit(api.page() != api.PAGE.read_text(encoding='utf-8'))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_interfaces_page_names_everything_public():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^### `(\w+)`$", text, re.MULTILINE))
    assert set(lightvlm.__all__) - {"__version__"} <= headings
    assert {preset.__name__ for preset in PRESETS.values()} <= headings


@pytest.mark.parametrize("kind", [lightvlm.Explanation, lightvlm.Report, Handle, Artifact, Verdict], ids=lambda kind: kind.__name__)
def test_every_public_member_says_what_it_is_for(kind):
    """Without a docstring the page would leave it out."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    members = [name for name, x in vars(kind).items() if not name.startswith("_") and isinstance(x, property | FunctionType)]
    assert not [name for name in members if f"#### `{kind.__name__}.{name}`" not in text]


def test_the_interfaces_page_tells_plain_types():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert "Annotated[" not in text
    assert "BeforeValidator" not in text


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
    for page in [*PAGES, *DECISIONS, ROOT / "CHANGELOG.md"]:
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


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS], ids=lambda p: p.name)
def test_lines_are_short(page):
    """Below 120 letters, tables and code too. Generated pages: by what writes them."""
    assert not [line for line in page.read_text(encoding="utf-8").splitlines() if len(line) > 119]
