"""Which releases are tested, what pyproject.toml allows, and what is said outside of them."""

import re
import tomllib
import warnings
from pathlib import Path

import pytest

import lightvlm_fx as lightvlm
from lightvlm_fx import releases
from lightvlm_fx.errors import CaptureError, InputError, NotSupported, PostconditionError, RefusedModel
from lightvlm_fx.model.locate import check_supported
from lightvlm_fx.releases import TESTED, UntestedRelease, releases_first, untested, warn_of_untested

ROOT = Path(lightvlm.__file__).parent.parent
OUTSIDE = "transformers 5.30.1 is outside the tested range 5.17 to 5.24"


def set_releases(patch, **versions):
    installed = releases.version
    patch.setattr(releases, "version", lambda name: versions.get(name) or installed(name))


@pytest.fixture
def outside(monkeypatch):
    set_releases(monkeypatch, transformers="5.30.1")


@pytest.mark.parametrize("name", TESTED)
def test_pyproject_allows_one_minor_release_above_what_is_tested(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["compile"]
    [bounds] = [line for line in wanted if re.match(rf"{name}\W", line)]
    (major, first), (_, last) = TESTED[name]
    assert bounds == f"{name}>={major}.{first},<{major}.{last + 2}"


@pytest.mark.parametrize("name", TESTED)
def test_the_pinned_release_is_tested(name):
    [pinned] = re.findall(rf"^{name}==([\d.]+)$", (ROOT / "requirements-tested.txt").read_text(), re.MULTILINE)
    first, last = TESTED[name]
    assert first <= tuple(map(int, pinned.split(".")[:2])) <= last


def test_says_nothing_inside_the_range(monkeypatch, recwarn):
    set_releases(monkeypatch, torch="2.13.0", transformers="5.20.2")
    assert untested() == warn_of_untested() == []
    with pytest.raises(CaptureError, match=r"^as it was$"), releases_first():
        raise CaptureError("as it was")
    assert not [w for w in recwarn if issubclass(w.category, UntestedRelease)]


@pytest.mark.parametrize(("name", "version", "inside"), [
    ("torch", "2.11.0", True), ("torch", "2.14.1+cu130", True), ("torch", "2.10.1", False), ("torch", "2.15.0a0+git1", False),
    ("transformers", "5.17.0", True), ("transformers", "5.24.0.dev0", True), ("transformers", "5.16.2", False),
    ("transformers", "5.25.0.dev0", False), ("transformers", "6.0.0", False), ("transformers", "4.57.6", False),
])  # fmt: skip
def test_a_release_is_its_major_and_minor_number(monkeypatch, name, version, inside):
    set_releases(monkeypatch, **{name: version})
    span = " to ".join(".".join(map(str, bound)) for bound in TESTED[name])
    assert untested() == ([] if inside else [f"{name} {version} is outside the tested range {span}"])


# --- what is said -----------------------------------------------------------------------------------------


def test_compile_warns_first_of_both(monkeypatch, llava):
    set_releases(monkeypatch, torch="2.99.0", transformers="5.30.1")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fast = lightvlm.compile(llava.model, "none", backend="eager")
        with pytest.raises(RefusedModel):
            lightvlm.compile(llava.model.model, "none", backend="eager")
    said = [str(w.message) for w in seen if w.category is UntestedRelease]
    each = [
        "torch 2.99.0 is outside the tested range 2.11 to 2.14; check keep=1.0 parity first",
        f"{OUTSIDE}; check keep=1.0 parity first",
    ]
    assert said == each * 2
    assert {w.filename for w in seen if w.category is UntestedRelease} == {__file__}
    assert fast.lightvlm.report.warnings == each
    assert each[1] in str(fast.lightvlm.report)


def test_export_warns_once(outside, llava, tmp_path):
    inputs = llava.inputs(text=(9,), images=(1,))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        lightvlm.export(llava.model, "none", tmp_path / "out", target="torch-export", inputs=inputs, prompt_tokens=60, new_tokens=2)
    assert [str(w.message).split(";")[0] for w in seen if w.category is UntestedRelease] == [OUTSIDE]


def test_a_refusal_begins_with_the_release(outside, llava):
    with pytest.raises(RefusedModel, match=f"^{OUTSIDE}: LlavaModel .llava. cannot be compiled: it has no generate"):
        check_supported(llava.model.model)


@pytest.mark.parametrize(("fails", "kind", "said"), [
    (RefusedModel("it attends twice"), RefusedModel, "it attends twice"),
    (PostconditionError("shapes no longer fit"), PostconditionError, "shapes no longer fit"),
    (TypeError("unexpected argument 'cache'"), CaptureError, "TypeError: unexpected argument 'cache'"),
])  # fmt: skip
def test_a_failed_capture_begins_with_the_release(outside, monkeypatch, llava, fails, kind, said):
    def capture(*args, **options):
        raise fails

    monkeypatch.setattr("lightvlm_fx.runtime.graphs.capture", capture)
    fast = lightvlm.compile(llava.model, "none", backend="eager")
    with pytest.raises(kind, match=f"^{OUTSIDE}: {said}$"):
        fast.generate(**llava.inputs(), max_new_tokens=1)


def test_it_is_said_once(outside):
    with pytest.raises(CaptureError, match=f"^{OUTSIDE}: no$"), releases_first(), releases_first():
        raise CaptureError("no")


@pytest.mark.parametrize("error", [InputError("the prompt has no picture"), NotSupported("no"), OSError(28, "No space left on device")])
def test_a_users_mistake_and_a_full_disk_stay_what_they_are(outside, error):
    with pytest.raises(type(error), match=re.escape(str(error)) + "$") as caught, releases_first():
        raise error
    assert caught.value is error


def test_an_import_that_fails_begins_with_the_release(outside, monkeypatch):
    def gone(name):
        raise ImportError("cannot import name 'sdpa_mask' from 'transformers.masking_utils'", name="transformers.masking_utils")

    monkeypatch.setattr(lightvlm, "import_module", gone)
    with pytest.raises(ImportError, match=f"^{OUTSIDE}: cannot import name 'sdpa_mask'"):
        lightvlm.__getattr__("compile")


def test_an_import_of_something_else_stays_what_it_is(outside, monkeypatch):
    def gone(name):
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr(lightvlm, "import_module", gone)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'onnxruntime'$"):
        lightvlm.__getattr__("load")
