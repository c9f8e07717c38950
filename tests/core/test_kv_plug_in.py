"""What docs/add-a-pass.md says of adding a KV method, followed from outside: a score that steps carry on, a merge, a budget."""

from importlib.metadata import EntryPoint

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.kv import Kv
from lightvlm_fx.methods import registry
from lightvlm_fx.methods.base import Budget, EntryMerge, EntryScore, View
from lightvlm_fx.methods.registry import BUDGETS, ENTRY_MERGES, ENTRY_SCORES
from lightvlm_fx.passes.bound_prefill import BoundPrefill
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import answer, difference
from lightvlm_fx.testing import check_pass, tiny_program

BATCH = {"text": (9, 6), "images": (1, 1)}


class Loud(EntryScore):
    """Length of each key, to a power; every step halves it and adds what the entry received."""

    name = "loud"
    source = "baseline"
    reads = ("k",)
    steps = True
    power: float = 1.0

    def prompt(self, view: View):
        return view.k.float().norm(dim=-1) ** self.power

    @property
    def decay(self):
        return 0.5

    @staticmethod
    def carry(score, probabilities, seen, decay):
        from lightvlm_fx.ops.bounded_attention import over_heads

        received = over_heads(probabilities, score)  # of several tokens at once, as if they came one by one
        ages = torch.arange(received.shape[2] - 1, -1, -1, device=score.device).float()
        score.mul_(decay ** received.shape[2]).add_((received * (decay**ages).unsqueeze(-1)).sum(2))


class Averaged(EntryMerge):
    """Values half-way to the mean of the row's."""

    name = "averaged"
    source = "baseline"
    reads = ("keys", "values", "index")

    def merge(self, view: View):
        index = view.index.expand(*view.values.shape[:2], -1).unsqueeze(-1)
        keys, values = (x.gather(2, index.expand(-1, -1, -1, x.shape[3])) for x in (view.keys, view.values))
        return keys, (values + view.values.mean(2, keepdim=True)) / 2


class FirstHalf(Budget):
    """Lower layers hold two entries more, upper ones two less."""

    name = "first-half"
    source = "baseline"
    by_layer = True

    def entries(self, mean, window, prompt, depth):
        return [mean + 2 if layer < depth // 2 else mean - 2 for layer in range(depth)]


KNOWN = (ENTRY_SCORES, ENTRY_MERGES, BUDGETS)


@pytest.fixture
def offered(monkeypatch):
    """The classes of this file as entry points; forgotten afterwards."""

    def forget():
        registry.offered.cache_clear()
        for known in KNOWN:
            vars(known).pop("owners", None)

    points = [EntryPoint(kind.name, f"{__name__}:{kind.__name__}", registry.GROUP) for kind in (Loud, Averaged, FirstHalf)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    forget()
    yield
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="module")
def tiny():
    return zoo.build("llava", layers=2)


@pytest.fixture(scope="module")
def unreduced(tiny):
    return lightvlm.compile(tiny.model, "none", backend="eager").lightvlm


def bounded(**options):
    return Schedule(kv=Kv(**{"capacity": 20, "sinks": 2, "recent": 4, "score": {"name": "loud", "power": 2.0}} | options))


def test_is_said_in_a_file(offered, tmp_path):
    schedule = bounded(when="prefill", merge="averaged", budgets="first-half")
    schedule.save(tmp_path / "s.toml")
    assert Schedule.load(tmp_path / "s.toml") == schedule
    assert isinstance(schedule.kv.score, Loud)


def test_keeps_the_contract_of_the_pass(offered):
    pass_ = BoundPrefill(sizes=(0, 1), sinks=1, recent=2, score=Loud(power=2.0), merge="averaged", running=Loud())
    check_pass(tiny_program(layers=2), pass_)


def test_the_prompt_keeps_what_the_score_says(offered, tiny, unreduced):
    """Each layer as many as the budget gives it: the longest keys beside what is protected."""
    inputs, fast = tiny.inputs(**BATCH), unreduced.with_schedule(bounded(when="prefill", budgets="first-half"))
    whole, kept = (answer(model, inputs, 1).past_key_values for model in (tiny.model, fast))
    segment = fast.lightvlm.layout.segment
    for number, layer in enumerate(kept.layers):
        size = 22 if number == 0 else 18
        for row in range(2):
            first = int((segment[row] == -2).sum())
            length = segment.shape[1]
            loud = whole.layers[number].keys[row].norm(dim=-1)
            loud[:, :first] = -1
            for at in (slice(first, first + 2), slice(length - 4, length)):
                loud[:, at] = float("inf")
            for head, held in enumerate(layer.table.position[row]):
                assert sorted(held[held >= 0].tolist()) == sorted(loud[head].topk(size).indices.tolist())


@pytest.mark.parametrize("heads", ["each", "shared"])
def test_steps_carry_the_score_on(offered, tiny, unreduced, heads):
    """A cache that overwrites reads the same as one that masks; and other entries than by age."""
    inputs = tiny.inputs(**BATCH)
    masked, written = (answer(unreduced.with_schedule(bounded(heads=heads, when=when)), inputs, 30) for when in ("mask", "step"))
    assert difference(masked, written) <= 1e-5
    by_age = answer(unreduced.with_schedule(bounded(heads=heads, score="age")), inputs, 30)
    held, old = (out.past_key_values.layers[0].table.position[0, 0].sort().values for out in (written, by_age))
    assert not torch.equal(held, old)


def test_a_dialogue_goes_on_as_if_its_tokens_came_one_by_one(offered, tiny, unreduced):
    """Where there is room for all: the running score of several new tokens is that of single ones."""
    fast = unreduced.with_schedule(bounded(capacity=200))
    inputs, more = tiny.inputs(text=(9,), images=(1,)), torch.randint(10, 60, (1, 5), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        together, singly = (fast(**inputs, use_cache=True).past_key_values for _ in range(2))
        fast(input_ids=more, past_key_values=together, use_cache=True)
        for i in range(5):
            fast(input_ids=more[:, i : i + 1], past_key_values=singly, use_cache=True)
    for a, b in zip(together.layers, singly.layers, strict=True):
        (at, x), (order, y) = ((layer.table.position.argsort(-1), layer.table.score) for layer in (a, b))
        torch.testing.assert_close(x.gather(2, at), y.gather(2, order))


def test_a_merge_changes_what_is_read(offered, tiny, unreduced):
    inputs = tiny.inputs(**BATCH)
    plain, merged = (answer(unreduced.with_schedule(bounded(when="prefill", merge=merge)), inputs, 2) for merge in ("none", "averaged"))
    for a, b in zip(plain.past_key_values.layers, merged.past_key_values.layers, strict=True):
        assert a.keys[:, :, :20].equal(b.keys[:, :, :20])
        assert not a.values[:, :, :20].equal(b.values[:, :, :20])


def test_a_score_that_has_no_steps_serves_the_prompt_alone(offered, monkeypatch):
    monkeypatch.setattr(Loud, "steps", False)
    with pytest.raises(ScheduleError, match="score 'loud' reads the prompt only; use when='prefill', or a score of age, attention, marks"):
        bounded(when="step")
    assert bounded(when="prefill").kv.score == Loud(power=2.0)
