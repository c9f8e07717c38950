import contextlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightvlm_fx import presets
from lightvlm_fx.errors import LightVLMError, ScheduleError, UnknownName
from lightvlm_fx.methods.moments import Prefill
from lightvlm_fx.presets import PRESETS, lookup
from lightvlm_fx.presets.places import PLACES
from lightvlm_fx.schedule import Schedule


@pytest.mark.parametrize("name", sorted(PRESETS), ids=lambda name: name.replace("+", "-plus"))
def test_every_preset_prints_as_expected(name, golden):
    """The recipe of each preset, field by field: a change here changes published figures."""
    schedule = Schedule.preset(name)
    parts = [f"{schedule.name} {schedule.fingerprint}", *map(str, schedule.cuts), *([str(schedule.kv)] if schedule.kv else [])]
    assert "\n".join(parts) == golden


@pytest.mark.parametrize("keep", [1.0, 0.35, 0.03])
def test_the_pyramid_falls_by_equal_factors_to_keep(keep):
    kept = [cut.keep for cut in Schedule.preset("lightvlm", keep=keep).cuts]
    assert kept[-1] == keep
    assert kept == pytest.approx([keep ** (1 / 3), keep ** (2 / 3), keep])


@pytest.mark.parametrize("keep", [1.0, 0.35, 0.03])
@pytest.mark.parametrize("baseline", ["random", "uniform"])
def test_baselines_have_the_layers_and_counts_of_lightvlm(baseline, keep):
    ours, theirs = Schedule.preset("lightvlm", keep=keep), Schedule.preset(baseline, keep=keep)
    assert ours.layers(24) == theirs.layers(24)
    assert ours.budgets(576) == theirs.budgets(576)
    assert {cut.score.name for cut in theirs.cuts} == {baseline}


@pytest.mark.parametrize("baseline", ["random", "uniform"])
def test_baselines_run_with_merge_too(baseline):
    assert {cut.combine.name for cut in Schedule.preset(baseline).cuts} == {"prune"}
    assert {cut.combine.name for cut in Schedule.preset(baseline, combine="merge").cuts} == {"merge"}


def test_options_reach_every_cut():
    options = {"score": "peak", "combine": "recover", "positions": "compact", "rope": False, "power": 0.75, "centres": 0.2, "group": 3}
    for cut in Schedule.preset("lightvlm", keep=0.1, layers=(2, 5), **options).cuts:
        assert cut.score.data == {"name": "peak", "rope": False, "power": 0.75}
        assert cut.combine.data == {"name": "recover", "centres": 0.2, "group": 3}
        assert cut.positions == "compact"


def test_fastv_is_one_cut_and_takes_a_count():
    (cut,) = Schedule.preset("fastv", layer=2, keep=25).cuts
    assert (cut.layer, cut.keep, cut.score.name, cut.combine.name) == (2, 25, "last-query", "prune")


def test_pyramiddrop_renumbers_its_survivors():
    cuts = Schedule.preset("pyramiddrop").cuts
    assert [(cut.layer, cut.keep) for cut in cuts] == list(
        zip((0.25, 0.5, 0.75), (0.5, 0.25, 0.125), strict=True)
    )
    assert {cut.positions for cut in cuts} == {"compact"}


def test_none_cuts_nothing():
    assert Schedule.preset("none").cuts == ()


def test_refuses_an_unknown_preset_with_a_guess():
    with pytest.raises(
        UnknownName, match=r"no preset named 'lightvml'; did you mean 'lightvlm'\?\n  known: aircache, .*fastv, .*light"
    ):
        Schedule.preset("lightvml")


def test_refuses_an_unknown_option_with_a_guess():
    with pytest.raises(UnknownName, match="no option of preset 'fastv' named 'layers'; did you mean 'layer'"):
        Schedule.preset("fastv", layers=(2,))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lightvlm", {"layers": 3}, r"lightvlm: layers must be a list such as \[.*\], got 3"),
        ("lightvlm", {"layers": ()}, "layers must name at least one layer"),
        ("lightvlm", {"keep": 64}, r"lightvlm: keep as a count needs a single layer \(layers=\(k,\)\), got"),
        ("pyramiddrop", {"keep": 0.3}, "pyramiddrop: keep must be a list such as"),
        ("pyramiddrop", {"keep": (0.3,)}, "pyramiddrop: keep has 1 entries and layers 3; give one each"),
    ],
)
def test_refuses_options_that_do_not_fit(name, options, message):
    with pytest.raises(ScheduleError, match=message):
        Schedule.preset(name, **options)


@pytest.mark.parametrize("name", PRESETS)
def test_any_value_of_any_option_is_a_schedule_or_an_error_of_ours(name):
    """Whatever else it raises is a foreign traceback in a user's face."""
    odd = ((), (0.5,), (1, 2, 3, 4, 5), 0, -1, 1.5, None, "x", float("nan"), 10**30, {}, (None,), ("a",))
    for option in presets.defaults(name):
        for value in odd:
            with contextlib.suppress(LightVLMError):
                assert isinstance(Schedule.preset(name, **{option: value}), Schedule)


def test_a_count_fits_a_single_layer():
    assert Schedule.preset("lightvlm", keep=64, layers=(2,)).budgets(576) == [64]


def test_a_preset_is_also_a_function_of_its_options():
    kv = presets.lightvlm(0.5, (1,), capacity=0.25, sinks=2, when=Prefill()).kv
    assert (kv.capacity, kv.sinks, kv.recent, kv.when) == (0.25, 2, 1, Prefill())
    assert {presets.defaults(name).keys() >= inspect.signature(make).parameters.keys() for name, make in PRESETS.items()
            if name != "lightvlm"} == {True}  # fmt: skip
    assert all(getattr(presets, make.__name__) is make for make in PRESETS.values())


def test_options_of_methods_and_of_the_cache_are_named_one_by_one():
    """`lightvlm` takes them beside its own; each has a default that `lightvlm presets` shows."""
    options = presets.defaults("lightvlm")
    assert list(options)[:7] == ["keep", "layers", "score", "combine", "positions", "proportional", "capacity"]
    assert Schedule.preset("lightvlm", **options) == Schedule.preset("lightvlm")
    with pytest.raises(UnknownName, match="did you mean 'kv_merge'"):
        Schedule.preset("lightvlm", capacity=64, kv_merg="none")


FILE = '''"""A preset of a test."""
from lightvlm_fx.schedule import Schedule

SURE = "Ours."


def my_cut(keep: float = 0.5) -> Schedule:
    """Baseline: nothing."""
    return Schedule(name="my-cut")


def my_cut_plus() -> Schedule:
    return Schedule(name="my-cut+")


def _helper() -> None: ...
'''


def test_a_new_file_alone_adds_its_presets(tmp_path):
    """As the package's own are found, in a process that has not looked for them before."""
    (tmp_path / "my_cut.py").write_text(FILE)
    (tmp_path / "helpers.py").write_text("def useful(): ...")
    code = f"""
import importlib.util, sys
spec = importlib.util.find_spec("lightvlm_fx.presets")
package = importlib.util.module_from_spec(spec)
package.__path__.append({str(tmp_path)!r})
sys.modules[spec.name] = package
spec.loader.exec_module(package)
from lightvlm_fx.presets import PRESETS, my_cut
from lightvlm_fx.presets.lookup import grouped, sure
from lightvlm_fx.schedule import Schedule
print(sorted(name for name in PRESETS if name.startswith(("my", "use", "_"))), sure("my-cut+"), my_cut is PRESETS["my-cut"])
print(Schedule.preset("my-cut").name, grouped()["Nowhere"], len(PRESETS))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = f"['my-cut', 'my-cut+'] Ours. True\nmy-cut ['my-cut', 'my-cut+', 'none'] {len(PRESETS) + 2}\n"
    assert (done.stdout, done.stderr) == (expected, "")


@pytest.mark.parametrize("path", sorted(Path(presets.__path__[0]).glob("*.py")), ids=lambda path: path.stem)
def test_a_file_is_one_preset_and_its_close_variants_or_what_several_share(path):
    here = {make.__name__ for make in PRESETS.values() if make.__module__ == f"lightvlm_fx.presets.{path.stem}"}
    if path.stem in {"__init__", "in_tower", "lookup", "places", "shared"}:
        assert not here
    else:
        assert path.stem in here
        assert {name.removesuffix("_plus") for name in here} == {path.stem}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_how_sure_its_steps_are(name):
    sure = lookup.sure(name)
    assert re.search(r"\b(Ours|ours)\b", sure)
    baseline = name in ("downsample", "none", "pool", "random", "uniform")
    assert bool(re.search("[Bb]aseline", PRESETS[name].__doc__)) == baseline
    assert bool(re.search(r"code|notes?\b|abstract", sure)) != baseline
    assert sure.endswith(".")


def test_lists_have_every_preset_once_by_where_it_acts():
    found = lookup.grouped()
    assert tuple(found) == PLACES
    assert sorted(lookup.ordered()) == sorted(PRESETS)
    where = {name: place for place, names in found.items() for name in names}
    assert [where[name] for name in ("downsample", "tome", "divprune", "sparsevila", "fastv", "shortv", "h2o", "none")] == [
        PLACES[0], PLACES[1], PLACES[2], PLACES[2], PLACES[3], PLACES[3], PLACES[4], PLACES[5]]  # fmt: skip
