"""Schedules, presets and pass texts take nothing for something else; whatever comes is a valid object or one error of ours."""

import os

import pytest
from fuzz.schedules import run

from lightvlm_fx.cli.base import preset_of
from lightvlm_fx.errors import LightVLMError, ScheduleError, UnknownName, shown
from lightvlm_fx.kv import Kv
from lightvlm_fx.passes import pipelines
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.schedule import MOST_BYTES, Cut, Schedule


@pytest.mark.parametrize("seed", range(3))
def test_every_outcome_is_valid_or_one_error_that_names_the_field(seed):
    found, examples = run(400, seed)
    assert not examples
    assert found == {"clear": 400, "wrong": 0, "crash": 0}


WRONG_TYPES = [
    (Cut, {"layer": 1, "keep": 0.5}, field, value)
    for field, value in [
        ("rope", "off"), ("rope", 1), ("image_softmax", 0.0), ("proportional", "false"), ("power", "0.5"), ("power", True),
        ("power", float("nan")), ("centres", b"0.1"),
        ("group", 5.0), ("group", "5"), ("seed", True), ("seed", 10**400), ("score", b"peak"), ("combine", ["merge"]),
        ("layer", 10**400), ("keep", 10**5000),
    ]
] + [
    (Kv, {"capacity": 99}, field, value)
    for field, value in [
        ("sinks", "3"), ("sinks", True), ("sinks", 3.0), ("recent", True), ("recent", 10**400), ("window", b"8"), ("kernel", 5.0),
        ("every", "64"), ("alpha", "1"),
        ("alpha", float("inf")), ("visual_share", False), ("text_first", 1), ("text_first", "yes"), ("capacity", 10**400),
        ("budgets", [10**400]), ("budgets", [True]), ("budgets", [5e-324]), ("budgets", {}), ("when", None), ("heads", 3), ("prompt", ()),
    ]
] + [
    (Schedule, {}, field, value)
    for field, value in [
        ("schema_version", True), ("schema_version", 1.0), ("schema_version", "1"), ("name", 3), ("name", b"mine"), ("name", "\ud800"),
        ("cuts", 3), ("cuts", [[1]]), ("cuts", "x"), ("kv", 3), ("kv", []),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("kind", "usual", "field", "value"), WRONG_TYPES, ids=lambda x: shown(x, 30))
def test_refuses_what_is_not_of_the_fields_type(kind, usual, field, value):
    with pytest.raises(LightVLMError, match=rf"\b{field}\b"):
        kind(**(usual | {field: value}))


# --- a count is no share ---------------------------------------------------------------------------------


def test_one_token_is_not_all_of_them():
    one, whole = (Cut(layer=1, keep=keep) for keep in (1, 1.0))
    assert one != whole
    assert len({one, whole}) == 2
    assert hash(one) != hash(whole)
    assert Schedule(cuts=[one]) != Schedule(cuts=[whole])
    assert len({Schedule(cuts=[one]): 1, Schedule(cuts=[whole]): 2}) == 2
    assert Kv(capacity=1, sinks=0, recent=0) != Kv(capacity=1.0, sinks=0, recent=0)
    assert Cut(layer=1, keep=1) == one
    assert Kv(capacity=9, sinks=0, recent=0, visual_share=-0.0) == Kv(capacity=9, sinks=0, recent=0)


@pytest.mark.parametrize(("power", "same"), [(4, 4.0), (0, -0.0)])
def test_equal_schedules_have_one_fingerprint(power, same):
    one, other = (Schedule(cuts=[Cut(layer=1, keep=0.5, score={"name": "density", "power": x})]) for x in (power, same))
    assert (one, hash(one), one.fingerprint) == (other, hash(other), other.fingerprint)


def test_sparsevila_with_one_token_keeps_one():
    (cut,) = Schedule.preset("sparsevila", keep=1).cuts
    assert cut.tokens(36) == 1
    assert Schedule.preset("sparsevila", keep=1.0).cuts == ()


# --- presets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [{}, [], None, 3, b"h2o", ("h2o",)])
def test_refuses_a_preset_that_is_no_name(name):
    with pytest.raises(UnknownName, match="no preset named "):
        Schedule.preset(name)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("h2o", {"name": 1}, "no option of preset 'h2o' named 'name'"),
    ("h2o", {"self": 1}, "no option of preset 'h2o' named 'self'"),
    ("lightvlm", {"capacity": 512, "visual_share": "x"}, "not a valid option of preset 'lightvlm': visual_share: .* got 'x'"),
    ("lightvlm", {"capacity": 512, "kv_score": "atention"}, "(?s)did you mean 'attention'.*field: kv_score"),
    ("lightvlm", {"sinks": 8, "when": "nonsense"}, "no moment named 'nonsense'"),
    ("lightvlm", {"sinks": 8, "when": "step"}, "lightvlm: when, sinks without capacity has no cache to bound"),
    ("lightvlm", {"visual_share": 0.5}, "lightvlm: visual_share without capacity"),
    ("lightvlm", {"heads": "each", "kv_merge": "none"}, "lightvlm: kv_merge, heads without capacity"),
    ("lightvlm", {"capacity": 0.25, "kv_score": "marks"}, "kv_score says how a cache goes on step by step, but when='prefill'"),
    ("lightvlm", {"layers": (0.2, "x")}, "layer must be a layer index"),
    ("pyramiddrop", {"keep": (0.5, True, 0.1)}, "keep must be a ratio"),
    ("random", {"seed": 1.0}, "seed: Input should be a valid integer, got 1.0"),
])  # fmt: skip
def test_refuses_options_of_presets(name, options, message):
    with pytest.raises(LightVLMError, match=message):
        Schedule.preset(name, **options)


@pytest.mark.parametrize("text", [
    "h2o:name=1", "h2o:capacity=nan", "h2o:capacity=" + "9" * 5000, "h2o:recent=true", "h2o:recent=4:recent=8",
], ids=lambda x: x[:30])  # fmt: skip
def test_refuses_options_on_the_command_line(text):
    with pytest.raises(LightVLMError, match=r"\b(name|capacity|recent)\b"):
        preset_of(text, [])


# --- passes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "message"), [
    ("bound-decode{sinks=-1}", "not a valid option of pass 'bound-decode': sinks: .* greater than or equal to 0, got -1"),
    ("bound-decode{score=marks:window=0}", "window: .* greater than or equal to 1, got 0"),
    ("bound-decode{score=zzz}", "no KV score named 'zzz'"),
    ("bound-prefill{merge=zzz}", "no way to merge entries named 'zzz'"),
    ("bound-prefill{budgets=pyramids}", "no way to share the budget named 'pyramids'"),
    ("bound-prefill{score=window:kernel=4}", "kernel must be odd, got 4"),
    ("bound-prefill{score=elite:alpha=0.0}", "alpha: .* greater than 0, got 0.0"),
    ("bound-prefill{visual_share=1.0}", "visual_share: .* less than 1, got 1.0"),
    ("bound-prefill{sizes=0/x/}", r"sizes.1: Input should be a valid integer, got 'x'"),
    ("bound-prefill{sizes=True/}", r"sizes.0: Input should be a valid integer, got True"),
    ("reduce-tokens{score=density:power=nan}", "power: .*number, got nan"),
    ("reduce-tokens{score=density:power=5.0}", "power: .* less than or equal to 4, got 5.0"),
    ("reduce-tokens{score=random:seed=-1}", "seed: .* greater than or equal to 0, got -1"),
    ("reduce-tokens{combine=meld}", "no combine named 'meld'"),
    ("reduce-tokens{layer=1,layer=2}", "reduce-tokens: layer is given twice"),
    ("reduce-tokens{layer=" + "9" * 5000 + "}", "reduce-tokens: layer must be int like 1"),
    ("reduce-tokens{layer=" + "9" * 400 + "}", "layer: .* less than or equal to 2147483647"),
    (None, "expected the text of a pipeline, .* got None"),
    (b"lower-attention", "expected the text of a pipeline"),
], ids=lambda x: shown(x, 30))  # fmt: skip
def test_refuses_passes_whose_options_cannot_be(text, message):
    with pytest.raises((ScheduleError, UnknownName), match=message):
        Pipeline.parse(text)


def test_the_pipelines_of_every_preset_parse_back():
    for name in ("lightvlm", "snapkv", "aircache", "sparsevila", "scissorhands", "meda"):
        schedule = Schedule.preset(name)
        for made in (pipelines.prefill(schedule, 8), pipelines.decode(schedule, 8)):
            assert Pipeline.parse(str(made)).passes == made.passes


# --- files -----------------------------------------------------------------------------------------------

NO_PATHS = [None, 3, b"s.toml", [], "a\x00b", "", "x" * 5000, "/dev/zero"]


@pytest.mark.parametrize("path", NO_PATHS, ids=lambda x: shown(x, 20))
def test_refuses_paths_of_no_file(path):
    for verb in (Schedule.load, Schedule().save):
        with pytest.raises(ScheduleError, match="schedule file") as error:
            verb(path)
        assert "\x00" not in str(error.value)


def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "s.toml")
    for verb in (Schedule.load, Schedule().save):
        with pytest.raises(ScheduleError, match="no regular file"):
            verb(tmp_path / "s.toml")


@pytest.mark.parametrize("text", [
    f"keep = {'[' * 500}{']' * 500}", f"keep = {'9' * 5000}", "a." * 5000 + "b = 1", "name = '" + "x" * MOST_BYTES + "'", "name = '\x00'",
], ids=["deep", "huge", "dotted", "long", "nul"])  # fmt: skip
def test_refuses_hostile_files(tmp_path, text):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ScheduleError, match=r"not a readable schedule file|not a valid schedule: (a|keep): "):
        Schedule.load(tmp_path / "s.toml")


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path, old = tmp_path / "s.toml", Schedule.preset("fastv")
    old.save(path)
    path.chmod(0o600)
    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(ScheduleError, match=r"s\.toml: the schedule file cannot be written: .*No space left"):
                Schedule.preset("h2o").save(path)
        assert Schedule.load(path) == old
        assert list(tmp_path.iterdir()) == [path]
    Schedule.preset("h2o").save(path)
    assert Schedule.load(path) == Schedule.preset("h2o")
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_no_file_can_hold_leaves_the_old_file(tmp_path):
    path, old = tmp_path / "s.toml", Schedule.preset("fastv")
    old.save(path)
    with pytest.raises(ScheduleError, match="cannot be written"):
        old.unchecked(name="\ud800").save(path)
    assert Schedule.load(path) == old


def test_saving_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "link.toml").symlink_to(tmp_path / "s.toml")
    Schedule().save(tmp_path / "link.toml")
    assert (tmp_path / "link.toml").is_symlink()
    assert Schedule.load(tmp_path / "s.toml") == Schedule()
