"""Golden texts (`assert text == golden`; `--update-golden` writes them) and tiny models that tests share."""

import difflib
import gc
import os
import re
from pathlib import Path

import pytest
from matrices import QUICK

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from hypothesis import HealthCheck, settings

from lightvlm_fx import zoo
from lightvlm_fx.compat import SINCE
from lightvlm_fx.ops import tiles
from lightvlm_fx.releases import TESTED, release
from lightvlm_fx.testing import tiny_programs

torch.set_num_threads(1)
# the same examples at every run, so a verdict is about the commit; --hypothesis-profile=default looks further
slow_to_draw = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile(
    "same",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=slow_to_draw,
)
settings.load_profile("same")

GOLDEN = Path(__file__).parent / "golden"
PINS = (Path(__file__).parents[1] / "requirements-tested.txt").read_text(encoding="utf-8")
PINNED = {name: tuple(map(int, re.search(rf"^{name}==(\d+)\.(\d+)", PINS, re.MULTILINE).groups())) for name in TESTED}


# begun first, longest first: whatever comes last, one worker does alone
LONG = (
    "test_elsewhere.py", "test_ray.py", "test_olive.py", "test_gpu.py", "test_torchao_apart.py", "test_one_row.py",
    "test_families.py", "test_load.py", "test_bounded_cache.py", "test_compiled.py", "test_any_picture.py", "test_any_size.py",
    "test_threads.py", "test_any_length.py", "test_reproducible.py", "test_any_schedule.py", "test_openvino.py", "test_methods_inside.py",
    "test_follow.py", "test_cli.py", "test_methods_before_decoder.py", "test_schedules.py", "test_artifact_families.py", "test_docs.py",
    "test_export_bad_input.py", "test_providers.py", "test_prepack.py", "test_bundled.py", "test_manifest.py", "test_reduce_tokens.py",
    "test_in_tower.py", "test_bodies.py", "test_images.py", "test_openai.py", "test_folder.py", "test_tensorrt.py", "test_dialogues.py",
    "test_pipelines.py",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files in the order of LONG, then the others as they were (pytest-randomly shuffles them)."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


def pytest_collection_finish():
    """What is imported stays: the garbage collector need not go through it at every trace, which allocates by the million."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_itemcollected(item):
    """Mark the rest of matrices."""
    cases = QUICK.get(f"{item.path.name}::{getattr(item, 'originalname', item.name)}")
    if cases is not None and not (cases and re.fullmatch(cases, item.callspec.id)):
        item.add_marker(pytest.mark.full)


def pytest_runtest_setup(item):
    """Skip what the installed transformers does in another way than later ones: by family, or by the mark `since`."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    family = params.get("family", params.get("model_type"))
    least = max([SINCE.get(family, (0, 0)), *(mark.args for mark in item.iter_markers("since"))])
    if release("transformers") < least:
        pytest.skip(f"from transformers {'.'.join(map(str, least))} on")


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden texts anew; read the diff"
    )


class Golden:
    """What a text should be; compare with `==`. Names of symbolic sizes (torch's choice) read as S."""

    def __init__(self, path, update):
        self.path, self.update = path, update

    def __eq__(self, text):
        text = _neutral(text)
        if self.update:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(text, encoding="utf-8")
        if not self.path.exists():
            pytest.fail(f"no golden text {self.path}: make it with `pytest --update-golden`, then read it")
        return text == self.path.read_text(encoding="utf-8")

    __hash__ = None


def _neutral(text):
    return text.rstrip("\n") + "\n"


def pytest_assertrepr_compare(op, left, right):
    if op != "==" or not isinstance(right, Golden):
        return None
    old, new = right.path.read_text(encoding="utf-8").splitlines(), _neutral(left).splitlines()
    diff = difflib.unified_diff(old, new, right.path.name, "now", lineterm="", n=1)
    return ["text differs from its golden; if that is meant, `pytest --update-golden`", *diff]


@pytest.fixture
def golden(request):
    """The golden text of this test: tests/golden/<file stem>/<test name>.txt, by the pinned releases alone."""
    if {name: release(name) for name in TESTED} != PINNED:
        pytest.skip("golden texts are of the releases in requirements-tested.txt")
    name = re.sub(r"[^\w.-]+", "_", request.node.name).strip("_")
    return Golden(GOLDEN / request.path.stem / f"{name}.txt", request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def llava():
    """A tiny random LLaVA of 4 decoder layers and 36 visual tokens a picture. Shared: leave it as it is."""
    return zoo.build("llava", layers=4)


@pytest.fixture(scope="session")
def programs():
    """Its captured stages for one row, by name; a row has no padding, so attention is plainly causal."""
    return tiny_programs()


@pytest.fixture(scope="session")
def masked_programs():
    """The same for two rows of different length, with explicit masks."""
    return tiny_programs(text=(7, 11), images=(1, 2))


@pytest.fixture(params=[None, 3], ids=["one-tile", "many-tiles"], scope="module")
def tile(request):
    """Ops go over the pairs of tokens in tiles as they do, which hold all of a small batch, or in tiles of three rows."""
    old, tiles.MOST = tiles.MOST, request.param or tiles.MOST
    yield
    tiles.MOST = old


@pytest.fixture
def prefill(programs):
    return programs["prefill"]


@pytest.fixture
def decode(programs):
    return programs["decode"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, output, errors."""
    from lightvlm_fx.cli import main as cli

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lightvlm", *words])
        monkeypatch.setattr(cli, "out", cli.Console(width=200))
        monkeypatch.setattr(cli, "err", cli.Console(stderr=True, width=200))
        with pytest.raises(SystemExit) as end:
            cli.main()
        text = capsys.readouterr()
        return end.value.code or 0, text.out, text.err

    return call
