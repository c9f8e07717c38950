import hashlib
import json
from itertools import pairwise

import pytest
import torch
from drawn import ADAPTIVE, KV_SCORES, MERGES, RUNNING, SHARING, WHEN, methods
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.errors import ScheduleError, UnknownName
from lightvlm_fx.kv import Kv
from lightvlm_fx.methods.registry import ENTRY_SCORES
from lightvlm_fx.model.layout import Layout
from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.runtime.kv_plan import KvPlan
from lightvlm_fx.schedule import Cut, Schedule

OPEN = {"sinks": 0, "recent": 0}  # nothing is protected
ONCE, VISUAL = {"when": "prefill"}, {"when": "prefill", "of": "visual"}
ELITE = "score='elite' ranks visual entries and needs of='visual'"
ratios, weights = st.floats(0, 1, exclude_min=True), st.lists(st.floats(0.1, 9), min_size=1, max_size=5)


@st.composite
def bounds(draw):
    """Any valid Kv."""
    when, of, scores, budgets = draw(st.sampled_from(WHEN)), "all", RUNNING, ("uniform", "pyramid")
    if when == "turn":
        of, scores, budgets = "visual", ("question",), [b for b in SHARING if b != "strength"]
    if when == "prefill":
        of = draw(st.sampled_from(["all", "visual"]))
        scores = [s for s in KV_SCORES if s != "question" and (s != "elite" or of == "visual")]
        budgets = [b for b in SHARING if b != "strength"]
    score = draw(methods(ENTRY_SCORES, scores))
    budgets = draw(weights | st.sampled_from([*budgets, "strength"] if score.name == "elite" else budgets))
    more = {name: draw(st.integers(1, 99)) for name in ("sinks", "recent")}
    more |= {"text_first": draw(st.booleans()), "merge": draw(st.sampled_from(["none", "counted"] if when == "turn" else MERGES))}
    if when not in ("prefill", "turn"):
        more["prompt"] = draw(st.none() | methods(ENTRY_SCORES, ["age", "window", "density"]))
        if score.carried and not more["text_first"]:
            more["visual_share"] = draw(st.floats(0, 0.001))
    more |= {"heads": draw(st.sampled_from(["each", "shared"]))}
    when = {"name": when, "every": draw(st.integers(1, 99))} if when == "periodic" else when
    counts = st.integers(199, 9999)
    capacity = draw(counts if when == "mask" or isinstance(when, dict) else counts | ratios)
    return Kv(capacity=capacity, of=of, when=when, score=score, budgets=budgets, **more)


@given(bounds(), st.booleans())
def test_a_file_reads_back_to_an_equal_schedule(tmp_path_factory, kv, cut):
    path = tmp_path_factory.getbasetemp() / "kv.toml"
    schedule = Schedule(cuts=[Cut(layer=1, keep=0.5)] if cut else [], kv=kv)
    schedule.save(path)
    again = Schedule.load(path)
    assert again == schedule
    assert again.fingerprint == schedule.fingerprint


def test_the_fingerprint_of_a_schedule_without_a_bound_is_that_of_its_cuts():
    """Schedules of earlier releases keep theirs."""
    schedule = Schedule.preset("fastv")
    cut = {"layer": 2, "keep": 0.5, "score": "last-query", "combine": "prune", "positions": "keep", "rope": True, "image_softmax": False,
           "power": 0.25, "centres": 0.1, "group": 5, "proportional": False, "seed": 0}  # fmt: skip
    data = {"cuts": [cut], "schema_version": 1}
    expected = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
    assert schedule.fingerprint == expected
    assert schedule.model_copy(update={"kv": Kv(capacity=50)}).fingerprint != expected


def test_the_fingerprint_changes_with_every_field_of_a_bound():
    changes = [
        {"capacity": 51}, {"of": "visual"}, {"when": "step"}, {"score": "age"}, {"heads": "shared"}, {"budgets": "pyramid"},
        {"heads": "shared", "layers": 2}, {"sinks": 3}, {"recent": 31}, {"text_first": True}, {"merge": "pivot"},
        {"score": {"name": "window", "kernel": 3}}, {"when": "step", "prompt": "density"}, {"when": "step", "visual_share": 0.1},
    ]  # fmt: skip
    assert {key for change in changes for key in change} == set(Kv.model_fields)
    prints = {Schedule(kv=Kv(**({"capacity": 50} | ONCE | change))).fingerprint for change in [{}, *changes]}
    assert len(prints) == len(changes) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"capacity": c}, r"capacity must be a count of entries or a share of the prompt in \(0, 1\], got ") for c in ("50", None, True)),
        *(({"capacity": c}, r"share of the prompt must be in \(0, 1\], got .*; write a whole") for c in (0.0, -0.5, 1.5, float("nan"))),
        *(({"capacity": c}, rf"capacity {c} is below sinks \+ recent \+ 1 = 4 \+ 32 \+ 1 = 37; raise the") for c in (36, 1)),
        *(({"capacity": c}, f"capacity as a count must be at least 1 entry, got {c}") for c in (0, -1)),
        *(({"budgets": b}, "budgets as a list must hold one positive weight a layer, got ") for b in ([], [1, 0], ["a"], [True])),
        ({"score": "elite"} | ONCE, ELITE),
        ({"score": "elite", "budgets": "strength"} | ONCE, ELITE),
        ({"budgets": "strength"} | VISUAL, "budgets='strength' needs score='elite', got 'attention'"),
        *(({"layers": 2} | more, "layers=2 is one choice for layers that keep equally many entries")
          for more in ({}, {"heads": "shared", "budgets": "pyramid"}, {"score": "question", "when": "turn", "of": "visual"})),
        ({"visual_share": 0.5}, r"capacity 50, less 25 for pictures, is below sinks \+ recent \+ 1 = 4 \+ 32 \+ 1 = 37; raise the"),
        *(({"visual_share": 0.1} | more, "visual_share=0.1 keeps pictures while text goes, step by step: it needs when='step', 'mask' or")
          for more in (ONCE, {"score": "age"}, {"text_first": True})),
        ({"visual_share": 1}, "not a valid kv: visual_share: Input should be less than 1, got 1"),
        ({"prompt": "elite"}, "prompt='elite' ranks visual entries only; use another score"),
        ({"prompt": "density"} | ONCE, "prompt='density' is for caches whose score the steps carry on, but when='prefill' chooses once"),
        ({"merge": "pivot", "when": "turn", "score": "question", "of": "visual"}, "but when='turn' drops none; use 'none', or 'counted'"),
        ({"score": {"name": "window", "kernel": 4}} | ONCE, "kernel must be odd, got 4"),
        ({"sinks": -1}, "not a valid kv: sinks: Input should be greater than or equal to 0, got -1"),
        ({"score": {"name": "elite", "alpha": 0}} | VISUAL,
         "not a valid option of KV score 'elite': alpha: Input should be greater than 0, got 0"),
        ({"color": 1}, r"not a valid kv: color: Extra inputs are not permitted, got 1 \(fields: capacity, of, when"),
    ],
)  # fmt: skip
def test_refuses_bad_options(options, message):
    for make in (lambda **o: Kv(**o), lambda **o: Schedule(kv=o)):
        with pytest.raises(ScheduleError, match=message):
            make(**({"capacity": 50} | options))


def test_refuses_a_choice_by_turn_without_a_question():
    message = "when='turn' reads the visual entries that a question asks for; it needs score='question' and of='visual'"
    for options in ({"when": "turn"}, {"when": "turn", "score": "question"}, {"when": "prefill", "score": "question", "of": "visual"}):
        with pytest.raises(ScheduleError, match=message):
            Kv(capacity=50, **options)


@pytest.mark.parametrize("when", ["mask", "periodic"])
def test_refuses_a_share_where_all_rows_need_one_capacity(when):
    with pytest.raises(ScheduleError, match=f"when='{when}' needs one capacity for all rows of a batch: a count, not the share 0.5"):
        Kv(capacity=0.5, when=when)


@pytest.mark.parametrize(("options", "message"), [
    ({"capacity": -5, "of": "visual", "when": "prefill"}, "capacity as a count must be at least 1 entry, got -5"),
    ({"capacity": 50, "budgets": [float("inf"), 1.0]}, "budgets as a list must hold one positive weight a layer"),
])  # fmt: skip
def test_refuses_numbers_that_cannot_be(options, message):
    with pytest.raises(ScheduleError, match=message):
        Kv(**options)


@pytest.mark.parametrize("when", [w for w in WHEN if w not in ("prefill", "turn")])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"score": s}, f"score '{s}' reads the prompt only; use when='prefill', or") for s in ("window", "text", "elite")),
        *((o, "needs capacities known beforehand; use of='all', and") for o in ({"of": "visual"}, *({"budgets": b} for b in ADAPTIVE))),
    ],
)  # fmt: skip
def test_refuses_while_decoding_what_only_the_prompt_tells(when, options, message):
    with pytest.raises(ScheduleError, match=message):
        Kv(capacity=50, when=when, **options)


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("score", "atention", "no KV score named 'atention'; did you mean 'attention'?"),
        ("when", "steps", "no moment named 'steps'; did you mean 'step'?"),
        ("of", "visuals", "no part of the cache named 'visuals'; did you mean 'visual'?"),
        ("prompt", "dense", "no KV score named 'dense'; did you mean 'density'?"),
        ("merge", "count", "no way to merge entries named 'count'; did you mean 'counted'?"),
        ("heads", "share", "no selection named 'share'; did you mean 'shared'?"),
        ("budgets", "piramid", "no way to share the budget named 'piramid'; did you mean 'pyramid'?"),
    ],
)
def test_refuses_unknown_names_with_a_guess(tmp_path, field, wrong, message):
    (tmp_path / "s.toml").write_text(f"[kv]\ncapacity = 50\n{field} = '{wrong}'")
    for make in (lambda: Kv(capacity=50, **{field: wrong}), lambda: Schedule.load(tmp_path / "s.toml")):
        with pytest.raises(UnknownName) as error:
            make()
        assert str(error.value).startswith(message)
    assert error.value.__notes__ == [f"in schedule file {tmp_path / 's.toml'}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": [1, 2, 3]}, "budgets lists 3 layers, but the decoder has 2; give one weight a layer"),
        ({"budgets": [3, 1]}, r"capacity 25 of layer 1 is below sinks \+ recent \+ 1 = 4 \+ 32 \+ 1 = 37; raise"),
        ({"capacity": 60, "budgets": "pyramid"}, "capacity 33 of layer 1 is below sinks"),
        ({"capacity": 2, "budgets": [9, 0.1]} | VISUAL, "capacity 2 leaves layer 1 no visual entry of 100; raise it"),
    ],
)
def test_refuses_a_layer_with_nothing_left(options, message):
    with pytest.raises(ScheduleError, match=message):
        Kv(**({"capacity": 50} | options)).capacities(100, 2)


@given(
    st.integers(0, 999), ratios, st.integers(0, 9), st.integers(0, 40), st.sampled_from([0, 0.3, 0.9]),
    st.sampled_from(["uniform", "pyramid", [1, 9]]),
)  # fmt: skip
def test_a_share_never_leaves_less_than_is_protected_and_one_more(prompt, share, sinks, recent, pictures, budgets):
    """A note says so where the share itself would; a count that small stays an error."""
    kv = Kv(capacity=share, sinks=sinks, recent=recent, visual_share=pictures, budgets=budgets)
    held, least = kv.capacities(prompt, 2), sinks + recent + 1
    assert min(n - kv.pictures(n) for n in held) >= least
    assert kv.least - 1 - kv.pictures(kv.least - 1) < least  # no smaller one would do
    if budgets == "uniform":
        mean = max(1, int(share * prompt + 0.5))
        assert held == [max(mean, kv.least)] * 2
        assert bool(kv.raised([prompt], 2)) == (mean < kv.least)


@given(st.integers(100, 5000), st.integers(0, 5000), st.integers(0, 32), st.integers(2, 48))
def test_a_pyramid_falls_in_equal_steps_and_keeps_the_mean(capacity, more, recent, depth):
    """It is flat where the prompt is no longer than what a layer holds."""
    held = Kv(capacity=capacity, budgets="pyramid", sinks=0, recent=recent).capacities(capacity + more, depth)
    steps = [a - b for a, b in pairwise(held)]
    assert min(steps) >= 0
    assert max(steps) - min(steps) <= 2  # both ends of a step are rounded
    assert (sum(steps) > 0) == (more > 0)
    assert max(held) <= capacity + more
    assert sum(held) / depth == pytest.approx(capacity, rel=0.01)


@given(st.integers(200, 9999) | st.floats(0.1, 1), weights)
def test_a_list_shares_the_budget_in_proportion(capacity, shares):
    """Around the count, or that share of the prompt."""
    held = Kv(capacity=capacity, budgets=shares, **OPEN).capacities(9999, len(shares))
    mean = capacity if isinstance(capacity, int) else int(capacity * 9999 + 0.5)
    for entries, share in zip(held, shares, strict=True):
        assert abs(entries - mean * len(shares) * share / sum(shares)) <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("options", "cuts", "count", "lengths"),
    [
        ({"capacity": 8}, (), [[8] * 3, [6] * 3], (8, 8, 8)),
        ({"capacity": 0.5}, (), [[8] * 3, [3] * 3], (8, 8, 8)),
        ({"capacity": 16}, (), [[16] * 3, [6] * 3], (16, 16, 16)),  # all fit
        ({"capacity": 10}, [Cut(layer=1, keep=0.2)], [[10, 8, 8], [6, 3, 3]], (10, 8, 8)),
        ({"capacity": 0.5} | VISUAL, (), [[5] * 3, [2] * 3], (11, 11, 11)),  # beside text
        ({"capacity": 10, "visual_share": 0.5}, (), [[10] * 3, [10] * 3], (10, 10, 10)),
        ({"capacity": 24, "visual_share": 0.25}, (), [[24] * 3, [24] * 3], (12, 12, 12)),  # they fit, but 10 visual are above 6
        ({"capacity": 24, "visual_share": 0.5}, (), [[24] * 3, [24] * 3], (16, 16, 16)),
        ({"capacity": 4, "budgets": [2, 1, 3]} | VISUAL, (), [[4, 2, 6], [4, 2, 4]], (10, 8, 12)),
    ],
)
def test_a_plan_bounds_every_row_and_layer(options, cuts, count, lengths):
    """Of a row with 6 text and 10 visual tokens, and one with 2 and 4 after padding."""
    rows = [[TEXT] * 3 + [0] * 10 + [TEXT] * 3, [PADDING] * 10 + [TEXT, *[0] * 4, TEXT]]
    layout, schedule = Layout(torch.tensor(rows), ((10,), (4,))), Schedule(cuts=cuts, kv=Kv(**options, **OPEN))
    made = KvPlan.of(layout, layout.plan(schedule), schedule, 3)
    assert made.count.tolist() == count
    assert made.lengths == lengths
