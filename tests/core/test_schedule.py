import pytest
from drawn import SCORES, WITHOUT_ATTENTION, combines, scores
from hypothesis import assume, given
from hypothesis import strategies as st

from lightvlm_fx.errors import LightVLMError, ScheduleError, UnknownName
from lightvlm_fx.schedule import POSITIONS, Cut, Schedule

ratios = st.floats(0, 1, exclude_min=True)
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)
options = st.fixed_dictionaries(
    {},
    optional={
        "score": scores,
        "combine": combines,
        "positions": st.sampled_from(POSITIONS),
        "proportional": st.booleans(),
    },
).filter(lambda o: ("combine" in o and o["combine"].counts) or not o.get("proportional"))


@st.composite
def schedules(draw):
    layers = draw(st.lists(draw(st.sampled_from([st.integers(1, 99), shares])), unique=True, max_size=4))
    keeps = draw(st.sampled_from([ratios, st.integers(1, 999), ratios | st.integers(1, 999)]))
    kept = sorted(
        (draw(keeps) for _ in layers), key=lambda k: k if isinstance(k, int) else 500 * k, reverse=True
    )
    cuts = [Cut(layer=at, keep=k, **draw(options)) for at, k in zip(sorted(layers), kept, strict=True)]
    assume(not any("tower" in method.reads for cut in cuts[1:] for method in (cut.score, cut.combine)))
    name = draw(st.text(st.characters(exclude_categories=["Cs"])))
    return Schedule(name=name, cuts=cuts)


@given(schedules())
def test_a_file_reads_back_to_an_equal_schedule(tmp_path_factory, schedule):
    path = tmp_path_factory.getbasetemp() / "schedule.toml"
    schedule.save(path)
    again = Schedule.load(path)
    assert again == schedule
    assert again.fingerprint == schedule.fingerprint


@pytest.mark.parametrize("name", ["", "two\nlines", 'a "quote" \\', "naïve", "\N{GRINNING FACE}", "\x7f"])
def test_any_name_can_be_saved(tmp_path, name):
    Schedule(name=name).save(tmp_path / "s.toml")
    assert Schedule.load(tmp_path / "s.toml").name == name


def test_the_file_is_plain_toml(tmp_path, golden):
    Schedule.preset("fastv", layer=2, keep=25).save(tmp_path / "s.toml")
    assert (tmp_path / "s.toml").read_text() == golden


@given(schedules(), st.text(st.characters(exclude_categories=["Cs"])))
def test_the_fingerprint_is_of_everything_but_the_name(schedule, name):
    renamed = schedule.model_copy(update={"name": name})
    assert renamed.fingerprint == schedule.fingerprint
    assert len(schedule.fingerprint) == 16
    int(schedule.fingerprint, 16)


def test_the_fingerprint_changes_with_every_field_of_a_cut():
    usual = {"layer": 3, "keep": 0.5}
    changes = [
        {"layer": 4}, {"keep": 0.4}, {"score": "peak"}, {"combine": "merge"}, {"positions": "compact"},
        {"score": {"name": "last-query", "rope": False}},
        {"proportional": True, "combine": "merge"},
    ]  # fmt: skip
    assert {key for change in changes for key in change} == set(Cut.model_fields)
    prints = {Schedule(cuts=[Cut(**(usual | change))]).fingerprint for change in [{}, *changes]}
    assert len(prints) == len(changes) + 1


def test_a_ratio_of_one_is_not_a_count_of_one():
    assert Cut(layer=1, keep=1.0).tokens(36) == 36
    assert Cut(layer=1, keep=1).tokens(36) == 1
    one, whole = (Schedule(cuts=[Cut(layer=1, keep=keep)]) for keep in (1, 1.0))
    assert one.fingerprint != whole.fingerprint


def test_the_fingerprint_is_the_same_in_every_release(golden):
    assert Schedule.preset("fastv", layer=2, keep=25).fingerprint == golden


def test_a_copy_with_other_fields_is_checked():
    schedule = Schedule.preset("lightvlm", capacity=64, recent=8)
    assert schedule.model_copy(update={"name": "mine"}) == Schedule(name="mine", cuts=schedule.cuts, kv=schedule.kv)
    assert schedule.model_copy() == schedule
    assert schedule.cuts[0].model_copy(update={"score": "random"}).score.seed == 0
    for update, message in (({"cuts": "none"}, "cuts"), ({"freeze": (2, 1)}, "freeze: layers must rise"), ({"colour": 1}, "colour")):
        with pytest.raises(ScheduleError, match=message):
            schedule.model_copy(update=update)
    with pytest.raises(ScheduleError, match="is below sinks"):
        schedule.kv.model_copy(update={"capacity": 3})


def test_a_schedule_can_be_hashed_and_not_changed():
    schedule = Schedule.preset("lightvlm")
    assert {schedule: 1}[Schedule.preset("lightvlm")] == 1
    with pytest.raises(ValueError, match="frozen"):
        schedule.name = "other"


@given(ratios, st.integers(0, 2000))
def test_a_ratio_keeps_a_rounded_share_of_every_picture_and_never_nothing(keep, n):
    tokens = Cut(layer=1, keep=keep).tokens(n)
    assert 0 <= tokens <= n
    assert (tokens == 0) == (n == 0)
    assert n == 0 or abs(tokens - max(1, n * keep)) <= 0.5


@given(schedules(), st.integers(1, 2000))
def test_budgets_fall_or_are_refused(schedule, n):
    wanted = [cut.keep if isinstance(cut.keep, int) else cut.tokens(n) for cut in schedule.cuts]
    if [n, *wanted] == sorted([n, *wanted], reverse=True):
        assert schedule.budgets(n) == wanted
    else:
        with pytest.raises(ScheduleError, match="above the"):
            schedule.budgets(n)


@given(ratios, st.integers(100, 900))
def test_a_count_after_a_ratio_fits_or_is_refused(ratio, count):
    schedule = Schedule(cuts=[Cut(layer=1, keep=ratio), Cut(layer=2, keep=count)])
    first = schedule.cuts[0].tokens(1000)
    if count <= first:
        assert schedule.budgets(1000) == [first, count]
    else:
        with pytest.raises(
            ScheduleError, match=f"keep={count} is {count} tokens, above the {first} that arrive"
        ):
            schedule.budgets(1000)


def test_layers_as_shares_follow_the_depth():
    cuts = Schedule(cuts=[Cut(layer=at, keep=0.5) for at in (0.25, 0.5, 0.75)])
    assert cuts.layers(8) == [2, 4, 6]
    assert cuts.layers(28) == [7, 14, 21]
    assert Schedule(cuts=[Cut(layer=0.01, keep=0.5)]).layers(28) == [1]


# --- what a schedule refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("make", [lambda keep: Cut(layer=1, keep=keep),
                                  lambda keep: Schedule.preset("fastv", keep=keep),
                                  lambda keep: Schedule.preset("lightvlm", keep=keep)])  # fmt: skip
def test_refuses_a_ratio_outside_0_to_1(keep, make):
    with pytest.raises(
        ScheduleError, match=r"keep as a ratio must be in \(0, 1\], got .*whole number \(e.g. keep=64\)"
    ):
        make(keep)


@pytest.mark.parametrize("keep", [0, -3])
def test_refuses_a_count_below_1(keep):
    with pytest.raises(ScheduleError, match=f"keep as a count must be at least 1 token an image, got {keep}"):
        Cut(layer=1, keep=keep)


@pytest.mark.parametrize("keep", ["0.5", None, True, [0.5]])
def test_refuses_a_keep_that_is_no_number(keep):
    with pytest.raises(ScheduleError, match=r"keep must be a ratio in .* or a count of tokens, got "):
        Cut(layer=1, keep=keep)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (-1, "layer must not be negative, got -1"),
        (1.0, r"layer as a share of the depth must be in \(0, 1\), got 1.0"),
        (0.0, r"layer as a share of the depth must be in \(0, 1\), got 0.0"),
        ("two", "layer must be a layer index or a share of the depth in .*, got 'two'"),
        (True, "layer must be a layer index or a share of the depth in .*, got True"),
    ],
)
def test_refuses_a_layer_that_is_none(layer, message):
    with pytest.raises(ScheduleError, match=message):
        Cut(layer=layer, keep=0.5)


@pytest.mark.parametrize("layers", [(2, 1), (1, 1), (0.5, 0.25), (1, 3, 2)])
def test_refuses_layers_unsorted_or_repeated(layers):
    with pytest.raises(ScheduleError, match=r"layers must rise and not repeat, got \["):
        Schedule(cuts=[Cut(layer=at, keep=0.5) for at in layers])


def test_refuses_indices_mixed_with_shares():
    with pytest.raises(ScheduleError, match=r"all indices or all shares of the depth, got \[1, 0.5\]"):
        Schedule(cuts=[Cut(layer=1, keep=0.5), Cut(layer=0.5, keep=0.5)])


@pytest.mark.parametrize("layer", [4, 5, 99])
def test_refuses_a_layer_beyond_the_model(layer):
    with pytest.raises(
        ScheduleError, match=rf"cut before layer {layer}: the decoder has 4 layers \(0 to 3\); use a smaller"
    ):
        Schedule(cuts=[Cut(layer=layer, keep=0.5)]).layers(4)


SHARES = [(0.25, 0.625, 0.875), (15 / 36, 17 / 36, 19 / 36, 21 / 36), (0.99, 0.995), (0.01, 0.02, 0.03)]


@pytest.mark.parametrize("shares", SHARES)
def test_shares_that_fall_on_one_layer_take_the_nearest_layers_of_their_own(shares):
    schedule = Schedule(cuts=[Cut(layer=share, keep=0.5) for share in shares])
    for depth in range(len(shares) + 1, 100):
        layers = schedule.layers(depth)
        assert layers == sorted(set(layers))
        assert 1 <= layers[0] <= layers[-1] < depth
        wanted = [min(depth - 1, max(1, round(share * depth))) for share in shares]
        if len(set(wanted)) == len(wanted):
            assert layers == wanted


def test_refuses_more_cuts_than_there_are_layers():
    with pytest.raises(ScheduleError, match="2 cuts need 2 layers after the first, but the decoder has 2; give fewer cuts"):
        Schedule(cuts=[Cut(layer=0.25, keep=0.5), Cut(layer=0.5, keep=0.3)]).layers(2)


@pytest.mark.parametrize("score", [s for s in SCORES if s not in WITHOUT_ATTENTION])
def test_refuses_layer_0_with_a_score_that_reads_attention(score):
    with pytest.raises(
        ScheduleError, match=f"cut before layer 0: score '{score}' reads the attention of the layer before"
    ):
        Schedule(cuts=[Cut(layer=0, keep=0.5, score=score)]).layers(4)


@pytest.mark.parametrize("score", ["random", "uniform"])
def test_takes_layer_0_with_a_score_that_reads_none(score):
    assert Schedule(cuts=[Cut(layer=0, keep=0.5, score=score)]).layers(4) == [0]


@pytest.mark.parametrize(("first", "later"), [(0.3, 0.5), (20, 30)])
def test_refuses_a_keep_above_what_arrives(first, later):
    with pytest.raises(
        ScheduleError, match=f"cut before layer 2: keep={later} is above the {first} that arrive from the cut"
    ):
        Schedule(cuts=[Cut(layer=1, keep=first), Cut(layer=2, keep=later)])


def test_refuses_a_count_above_the_share_that_arrives():
    schedule = Schedule(cuts=[Cut(layer=1, keep=0.25), Cut(layer=2, keep=20)])
    assert schedule.budgets(100) == [25, 20]
    with pytest.raises(
        ScheduleError, match="cut before layer 2: keep=20 is 20 tokens, above the 9 that arrive"
    ):
        schedule.budgets(36)


def test_refuses_a_count_above_the_picture():
    with pytest.raises(
        ScheduleError,
        match="keep=64 is above the 36 visual tokens of an image; use a smaller count, or a ratio",
    ):
        Schedule(cuts=[Cut(layer=1, keep=64)]).budgets(36)


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("score", "last-qery", "no score named 'last-qery'; did you mean 'last-query'?"),
        ("combine", "merg", "no combine named 'merg'; did you mean 'merge'?"),
        ("positions", "compcat", "no position policy named 'compcat'; did you mean 'compact'?"),
        ("score", 3, "no score named 3\n  known: density, "),
    ],
)
def test_refuses_unknown_names_with_a_guess(field, wrong, message):
    makers = [
        lambda: Cut(layer=1, keep=0.5, **{field: wrong}),
        lambda: Schedule(cuts=[{"layer": 1, "keep": 0.5, field: wrong}]),
        lambda: Schedule.preset("lightvlm", **{field: wrong}),
    ]
    for make in makers:
        with pytest.raises(UnknownName) as error:
            make()
        assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("power", 0.5, "power is an option of score 'density' and of score 'peak'.*; score='last-query', combine='prune' have none"),
        ("group", 4, "group is an option of .*combine 'recover'; score='last-query', combine='prune' have none"),
        ("rope", "perhaps", "not a valid option of score 'last-query': rope: .* got 'perhaps'"),
        (
            "colour",
            1,
            r"not a valid cut: colour: Extra inputs are not permitted, got 1 \(fields: layer, keep, score",
        ),
    ],
)
def test_refuses_bad_options(field, wrong, message):
    with pytest.raises(ScheduleError, match=message):
        Cut(layer=1, keep=0.5, **{field: wrong})


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"name": "density", "power": 9}, "not a valid option of score 'density': power: Input should be less than or equal to 4, got 9"),
        ({"name": "random", "seed": 2**32}, "not a valid option of score 'random': seed: Input should be less than 4294967296"),
        ({"name": "random", "seed": -1}, "not a valid option of score 'random': seed: Input should be greater than or equal to 0, got -1"),
        ({"name": "uniform", "power": 3}, r"not a valid option of score 'uniform': power: Extra inputs are not permitted, got 3"),
        ({"power": 3}, "no score named "),
    ],
)
def test_refuses_bad_options_of_a_method(score, message):
    for make in (lambda: Cut(layer=1, keep=0.5, score=score), lambda: Schedule(cuts=[{"layer": 1, "keep": 0.5, "score": score}])):
        with pytest.raises(LightVLMError, match=message):
            make()


def test_refuses_to_count_merged_tokens_where_none_are_merged():
    with pytest.raises(
        ScheduleError, match=r"proportional=True counts merged tokens, but combine='prune' merges none; use"
    ):
        Cut(layer=1, keep=0.5, proportional=True)


# --- files -----------------------------------------------------------------------------------------------


def written(folder, text):
    path = folder / "s.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[[cuts]]\nlayer = 1\nkeep = 0.5\nscor = 'peak'",
            r"cut: scor: Extra inputs .* got 'peak' \(fields: layer, keep, score",
        ),
        (
            "color = 1",
            r"not a valid schedule: color: Extra inputs .* got 1 \(fields: name, cuts, kv, freeze, tower, downsample, schema_version\)",
        ),
        ("self = 1", "not a valid schedule: self: Extra inputs"),
        ("schema_version = 2", "schema_version: Input should be 1, got 2"),
        ("cuts = 3", "cuts: Input should be a valid tuple, got 3"),
        ("[[cuts]]\nlayer = 1", "not a valid cut: keep: Field required"),
        ("[[cuts]]\nlayer = 1\nkeep = 1.5", "keep as a ratio must be in"),
        ("[[cuts]]\nlayer = 1\nkeep = 0.5\ncombine = 'meld'", "no combine named 'meld'"),
    ],
)
def test_refuses_a_file_with_a_bad_field_and_names_the_file(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(LightVLMError, match=message) as error:
        Schedule.load(path)
    assert isinstance(error.value, ValueError)
    assert f"in schedule file {path}" in error.value.__notes__


def test_says_which_cut_of_a_file_is_wrong(tmp_path):
    path = written(tmp_path, "[[cuts]]\nlayer = 1\nkeep = 0.5\n[[cuts]]\nlayer = 2\nkeep = 7.5")
    with pytest.raises(ScheduleError, match=r"got 7\.5") as error:
        Schedule.load(path)
    assert "in cut 1" in error.value.__notes__


@pytest.mark.parametrize("text", ["name = ", b"\xff\xfe", "name = 'a'\nname = 'b'"])
def test_refuses_a_file_that_is_no_toml(tmp_path, text):
    path = written(tmp_path, text)
    with pytest.raises(ScheduleError, match=rf"{path}: not a readable schedule file: "):
        Schedule.load(path)


def test_refuses_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(
            ScheduleError, match=rf"{path}: not a readable schedule file: .*(No such file|directory)"
        ):
            Schedule.load(path)
