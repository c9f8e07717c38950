"""Methods as values: options of their own, names, plug-ins, and the files and fingerprints of version 0.1."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from drawn import methods
from hypothesis import given

from lightvlm_fx.errors import LightVLMError, ScheduleError, UnknownName
from lightvlm_fx.kv import Kv
from lightvlm_fx.methods import operators, registry
from lightvlm_fx.methods.base import EntryScore, TokenScore, View
from lightvlm_fx.methods.combines.prune import Prune
from lightvlm_fx.methods.registry import COMBINES, ENTRY_SCORES, TOKEN_SCORES, AnyCombine, Registry
from lightvlm_fx.methods.token_scores.density import Density
from lightvlm_fx.methods.token_scores.peak import Peak
from lightvlm_fx.schedule import Cut, Schedule, TowerCut
from lightvlm_fx.testing import check_pass, tiny_program

# As 036d8e9 gave them, whole files; those with `tower` or `freeze` as release 0.2.0 did.
OLD = json.loads((Path(__file__).parent / "fingerprints.json").read_text())


@pytest.mark.parametrize(("fingerprint", "data"), OLD)
def test_old_schedules_load_and_keep_their_fingerprint(fingerprint, data, tmp_path):
    schedule = Schedule(**data)
    assert schedule.fingerprint == fingerprint
    schedule.save(tmp_path / "s.toml")
    assert Schedule.load(tmp_path / "s.toml") == schedule
    assert Schedule.model_validate_json(schedule.model_dump_json()) == schedule


class LaterCut(Cut):
    """A cut as a later release may have it."""

    depth: int = 0


class LaterTowerCut(TowerCut):
    """A cut in the tower as a later release may have it."""

    rest: AnyCombine = Prune()


class LaterKv(Kv):
    """A bound as a later release may have it."""

    spill: float | None = None


class LaterSchedule(Schedule):
    """A schedule as a later release may have it."""

    twice: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("field", "new"), [("cuts", {"depth": 1}), ("tower", {"rest": "merge"}), ("kv", {"spill": 0.5}), (None, {"twice": (3,)})]
)
def test_a_later_field_changes_a_fingerprint_only_where_it_is_not_at_its_default(field, new):
    later = {"cuts": LaterCut, "tower": LaterTowerCut, "kv": LaterKv}
    for fingerprint, data in OLD:
        schedule = Schedule(**data)
        if field is None:
            same, other = (LaterSchedule(**dict(schedule), **more) for more in ({}, new))
        elif not getattr(schedule, field):
            continue
        else:
            part = getattr(schedule, field)
            made = [[later[field](**dict(x), **more) for x in (part if isinstance(part, tuple) else [part])] for more in ({}, new)]
            same, other = (schedule.unchecked(**{field: tuple(xs) if isinstance(part, tuple) else xs[0]}) for xs in made)
        assert same.fingerprint == fingerprint
        assert other.fingerprint != fingerprint


def test_a_complete_old_file_may_hold_options_of_other_methods():
    """Version 0.1 wrote all options of all methods, whatever had been chosen."""
    cut = next(data for _, data in OLD if data["cuts"])["cuts"][0]
    assert Cut(**(cut | {"score": "uniform", "power": 3.0})).score.data == "uniform"
    with pytest.raises(ScheduleError, match="power is an option of score 'density' and of score 'peak'"):
        Cut(layer=1, keep=0.5, score="uniform", power=3.0)


@pytest.mark.parametrize(("made", "same"), [
    (lambda: Cut(layer=1, keep=0.5, score="density", power=0.5), lambda: Cut(layer=1, keep=0.5, score=Density(power=0.5))),
    (lambda: Cut(layer=1, keep=0.5, score={"name": "peak", "rope": False}, power=0.5),
     lambda: Cut(layer=1, keep=0.5, score=Peak(rope=False, power=0.5))),
    (lambda: Kv(capacity=99, when="periodic", every=7), lambda: Kv(capacity=99, when={"name": "periodic", "every": 7})),
    (lambda: Kv(capacity=99, score="marks", prompt="window", window=7),
     lambda: Kv(capacity=99, score={"name": "marks", "window": 7}, prompt={"name": "window", "window": 7})),
])  # fmt: skip
def test_options_beside_a_name_are_those_of_the_method(made, same):
    assert made() == same()
    assert Schedule(cuts=[made()]) == Schedule(cuts=[same()]) if isinstance(made(), Cut) else Schedule(kv=made()) == Schedule(kv=same())


def test_two_scores_with_an_option_of_one_name_have_fingerprints_of_their_own():
    one, other = (Kv(capacity=99, score="marks", prompt={"name": "window", "window": n}) for n in (32, 7))
    assert Schedule(kv=one).fingerprint != Schedule(kv=other).fingerprint


@given(methods(TOKEN_SCORES))
def test_a_method_parses_back_from_its_data(method):
    assert TOKEN_SCORES.make(method.data) == method
    assert hash(TOKEN_SCORES.make(method.data)) == hash(method)


@pytest.mark.parametrize("value", [None, 3, [], {}, {"name": 3}, {"name": "densty"}, {"power": 1}, Density, COMBINES.make("merge")])
def test_refuses_what_names_no_method(value):
    with pytest.raises(UnknownName, match="no score named"):
        TOKEN_SCORES.make(value)


def test_making_a_schedule_needs_no_torch():
    code = "import sys, lightvlm_fx.schedule as s; s.Schedule.preset('lightvlm', capacity=512); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- what other distributions offer ----------------------------------------------------------------------


class Longest(TokenScore):
    """Length of the hidden state, to a power."""

    name = "longest"
    source = "baseline"
    reads = ("hidden",)
    power: float = 1.0

    def score(self, view: View):
        return view.hidden.float().norm(dim=-1) ** self.power


class Dense(TokenScore):
    """A score under a name that is taken."""

    name = "density"
    source = "baseline"


@pytest.fixture
def offer(monkeypatch):
    """Make a class of this file an entry point, and forget it afterwards."""

    def offered(*names):
        points = [EntryPoint(name.lower(), f"{__name__}:{name}", registry.GROUP) for name in names]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        registry.offered.cache_clear()
        for known in (TOKEN_SCORES, ENTRY_SCORES):
            vars(known).pop("owners", None)

    yield offered
    monkeypatch.undo()
    registry.offered.cache_clear()
    for known in (TOKEN_SCORES, ENTRY_SCORES):
        vars(known).pop("owners", None)


def test_a_plug_in_score_works_everywhere(offer, tmp_path):
    """In files, in passes and their text, and as an operator: from its class alone."""
    offer("Longest")
    schedule = Schedule(cuts=[Cut(layer=1, keep=0.5, score={"name": "longest", "power": 2.0})])
    schedule.save(tmp_path / "s.toml")
    assert Schedule.load(tmp_path / "s.toml") == schedule
    from lightvlm_fx.passes.reduce_tokens import ReduceTokens

    check_pass(tiny_program(), ReduceTokens(layer=1, score=Longest(power=2.0)))
    op = operators.operator(Longest, "score")
    hidden, segment = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.int64)
    torch.testing.assert_close(op(hidden, segment, 2.0), hidden.norm(dim=-1) ** 2)
    torch.library.opcheck(op, (hidden, segment, 2.0), test_utils=("test_schema", "test_faketensor"))


class Misreads(Longest):
    """Reads what no graph has."""

    name = "misreads"
    reads = ("hiden",)


class Listed(Longest):
    """An option that no operator takes."""

    name = "listed"
    layers: frozenset[int] = frozenset({1})


@pytest.mark.parametrize(("kind", "message"), [
    (Misreads, "score 'misreads' reads hiden; what can be read: hidden, previous, q"),
    (Listed, r"score 'listed': option 'layers' has the default frozenset\(\{1\}\); operators take options with a default that is a switch"),
])  # fmt: skip
def test_refuses_a_plug_in_that_no_operator_can_be(kind, message):
    with pytest.raises(ScheduleError, match=message):
        operators.operator(kind, "score")


def test_a_score_without_tensor_code_cannot_be_made():
    class Idle(TokenScore):
        name = "idle"
        source = "baseline"

    with pytest.raises(TypeError, match="abstract"):
        Idle()


def test_refuses_two_methods_of_one_name(offer):
    offer("Dense")
    with pytest.raises(ScheduleError, match=r"two offer a score named 'density': lightvlm_fx and .*remove one"):
        TOKEN_SCORES.make("density")


def test_refuses_an_entry_point_that_is_no_method(offer):
    offer("OLD")
    with pytest.raises(ScheduleError, match=r"the entry point 'old' of .* no class of lightvlm_fx.methods.base.Method"):
        TOKEN_SCORES.make("density")


def test_a_kind_of_method_knows_its_own_only(offer):
    offer("Longest")
    assert "longest" in TOKEN_SCORES.names
    assert "longest" not in ENTRY_SCORES.names
    with pytest.raises(LightVLMError):
        Kv(capacity=99, score="longest")
    assert Registry(EntryScore, "entry_scores").names == ENTRY_SCORES.names
