import dataclasses
import warnings

import pytest
import torch
from drawn import combines, scores
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.errors import OrderError, PostconditionError, PreconditionError, ScheduleError, UnknownName
from lightvlm_fx.graph.pretty import text
from lightvlm_fx.passes import CATALOGUE, EXAMPLES, pipelines
from lightvlm_fx.passes.attach_cache import AttachCache
from lightvlm_fx.passes.drop_export_checks import DropExportChecks
from lightvlm_fx.passes.lower_attention import LowerAttention
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passes.shift_positions import ShiftPositions
from lightvlm_fx.passing.pass_base import Pass, PassResult, parse_pass
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.schedule import POSITIONS, Schedule


@dataclasses.dataclass(frozen=True)
class Tinker(Pass):
    """Doubles the output, or only says so, or breaks it."""

    how: str = "well"

    name = "tinker"
    stages = ("prefill",)

    def requires(self, program):
        pass

    def call(self, program):
        if self.how in ("well", "silently"):
            end = program.output_node()
            with program.graph.inserting_before(end):
                twice = program.graph.call_function(torch.ops.aten.mul.Tensor, (end.args[0][0], 2))
            end.args = ((twice, *end.args[0][1:]),)
        if self.how == "wrongly":
            node = program.markers()[0]
            node.args = (node.args[0], node.args[1].args[0], *node.args[2:])
            program.sequence().replace_all_uses_with(
                next(n for n in program.placeholders() if n.name == "position_ids")
            )
        return PassResult(0 if self.how == "silently" else 1, 1)

    def ensures(self, program):
        if self.how == "well":
            assert program.output_node().args[0][0].target == torch.ops.aten.mul.Tensor


# --- order, text -----------------------------------------------------------------------------------------


def test_refuses_passes_in_an_order_that_one_forbids():
    with pytest.raises(
        OrderError,
        match=r"lower-attention must run after reduce-tokens\n  order given: lower-attention -> reduce",
    ):
        Pipeline([LowerAttention(), ReduceTokens()])


def test_names_every_pass_that_stands_wrong():
    with pytest.raises(
        OrderError,
        match="attach-cache must run after shift-positions; lower-attention must run after reduce-t",
    ):
        Pipeline([AttachCache(), ShiftPositions(), LowerAttention(), ReduceTokens()])


def test_parses_what_it_prints():
    written = "drop-export-checks -> reduce-tokens{layer=2,score=peak} -> lower-attention"
    assert str(Pipeline.parse(written)) == written
    assert Pipeline.parse(written).passes == (
        DropExportChecks(),
        ReduceTokens(2, "peak"),
        LowerAttention(),
    )
    assert Pipeline.parse(str(Pipeline([]))).passes == ()


fields = {
    "layer": st.integers(0, 99),
    "score": scores,
    "combine": combines,
    "positions": st.sampled_from(POSITIONS),
    "proportional": st.booleans(),
}
layers = st.lists(st.integers(0, 99), unique=True).map(sorted).map(tuple)
passes = st.one_of(
    st.builds(ReduceTokens, **fields),
    st.builds(AttachCache, layers, layers),
    st.builds(ShiftPositions, layers),
    st.just(LowerAttention()),
)


@given(passes)
def test_a_pass_parses_back_from_its_text(pass_):
    assert parse_pass(str(pass_), CATALOGUE) == pass_


def test_every_option_is_drawn_above():
    assert set(fields) == {f.name for f in dataclasses.fields(ReduceTokens)}


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_examples_parse_back(example):
    assert parse_pass(str(example), CATALOGUE) == example


@pytest.mark.parametrize(
    ("written", "error", "message"),
    [
        ("reduce-token", UnknownName, "no pass named 'reduce-token'; did you mean 'reduce-tokens'"),
        (
            "reduce-tokens{layr=1}",
            UnknownName,
            "no option of pass 'reduce-tokens' named 'layr'; did you mean 'layer'",
        ),
        ("reduce-tokens{layer=first}", ScheduleError, "reduce-tokens: layer must be int like 1, got 'first'"),
        ("reduce-tokens{layer=True}", ScheduleError, "reduce-tokens: layer must be int like 1, got 'True'"),
        ("reduce-tokens{layer}", ScheduleError, "reduce-tokens: layer must be int like 1, got ''"),
        ("attach-cache{layers=1}", ScheduleError, "attach-cache: layers must be tuple like /, got '1'"),
        ("Reduce Tokens", ScheduleError, r"expected 'name\{option=value,...\}', got 'Reduce Tokens'"),
        ("reduce-tokens{layer=1", ScheduleError, r"expected 'name\{option=value,...\}'"),
    ],
)
def test_refuses_text_that_is_no_pass(written, error, message):
    with pytest.raises(error, match=message):
        Pipeline.parse(f"drop-export-checks -> {written}")


# --- running ---------------------------------------------------------------------------------------------


def test_leaves_the_program_it_was_given_alone(prefill):
    before = text(prefill, noise=True)
    after, _ = Pipeline([DropExportChecks(), ReduceTokens(layer=1), LowerAttention()]).run(prefill)
    assert text(prefill, noise=True) == before
    assert text(after) != before


def test_every_inserted_line_says_which_pass_made_it(prefill):
    after, _ = Pipeline([DropExportChecks(), ReduceTokens(layer=1), Tinker()]).run(prefill)
    made = {n.name: n.meta.get("lightvlm_pass") for n in after.graph.nodes}
    assert made["index_0"] == "reduce-tokens"
    assert made["mul_tensor"] == "tinker"
    assert made["linear"] is None


def test_reports_matches_and_counts(prefill, golden):
    pipeline = Pipeline([DropExportChecks(), ReduceTokens(layer=1), LowerAttention()])
    _, steps = pipeline.run(prefill)
    assert "\n".join(map(str, steps)) == golden


def test_the_pipelines_of_a_schedule_are_literal(golden):
    schedule = Schedule.preset("pyramiddrop")
    assert f"{pipelines.prefill(schedule, 8)}\n{pipelines.decode(schedule, 8)}" == golden


def test_a_schedule_without_compact_positions_shifts_none():
    assert [p.name for p in pipelines.decode(Schedule.preset("lightvlm"), 8).passes] == [
        "drop-export-checks",
        "attach-cache",
    ]


def test_writes_the_text_around_every_pass(prefill, tmp_path):
    pipeline = Pipeline([DropExportChecks(), ReduceTokens(layer=1)])
    after, _ = pipeline.run(prefill, dump=tmp_path / "new")
    names = ["prefill-00-captured.txt", "prefill-01-drop-export-checks.txt", "prefill-02-reduce-tokens.txt"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == names
    assert (tmp_path / "new" / names[0]).read_text() == text(prefill)
    assert (tmp_path / "new" / names[2]).read_text() == text(after)


def test_a_failing_pass_leaves_the_text_before_it(prefill, tmp_path):
    with pytest.raises(PreconditionError):
        Pipeline([DropExportChecks(), ReduceTokens(layer=99)]).run(prefill, dump=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "prefill-00-captured.txt",
        "prefill-01-drop-export-checks.txt",
    ]


def test_stops_after_a_number_of_passes(prefill):
    pipeline = Pipeline([DropExportChecks(), ReduceTokens(layer=1), LowerAttention()])
    for count in range(4):
        after, steps = pipeline.run(prefill, stop_after=count)
        assert len(steps) == count
        assert bool(after.facts.cuts) == (count >= 2)
        assert bool(after.markers()) == (count < 3)


# --- what it refuses -------------------------------------------------------------------------------------


def test_refuses_fewer_matches_than_expected_when_strict(prefill):
    lowered, _ = Pipeline([LowerAttention()]).run(prefill)
    with pytest.raises(
        PreconditionError, match="lower-attention: expected to match 4 places, matched 0; pass strict=False"
    ):
        Pipeline([LowerAttention()]).run(lowered)


def test_warns_of_fewer_matches_than_expected_when_not_strict(prefill):
    lowered, _ = Pipeline([LowerAttention()]).run(prefill)
    with pytest.warns(UserWarning, match="lower-attention: expected to match 4 places, matched 0"):
        again, (step,) = Pipeline([LowerAttention()]).run(lowered, strict=False)
    assert not step.result.changed
    assert text(again) == text(lowered)


def test_does_not_warn_of_full_matches(prefill):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pipeline([LowerAttention()]).run(prefill, strict=False)


def test_says_which_pass_of_which_run_failed(prefill):
    with pytest.raises(PreconditionError) as error:
        Pipeline([DropExportChecks(), ReduceTokens(layer=99)]).run(prefill)
    assert error.value.__notes__ == [
        "while running pass 2/2 of the prefill pipeline: drop-export-checks -> reduce-tokens{layer=99}"
    ]


def test_refuses_a_pass_for_another_stage(prefill, decode):
    with pytest.raises(
        PreconditionError, match="attach-cache: applies to decode programs, got a prefill program"
    ):
        Pipeline([AttachCache()]).run(prefill)
    with pytest.raises(
        PreconditionError, match="lower-attention: applies to prefill programs, got a decode program"
    ):
        Pipeline([LowerAttention()]).run(decode)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("boastfully", "reports 1 changes, but the graph did not change"),
        ("silently", "reports 0 changes, but the graph did change"),
    ],
)
def test_holds_a_pass_to_what_it_reports(prefill, how, message):
    with pytest.raises(PostconditionError, match=message):
        Pipeline([Tinker(how)]).run(prefill)


def test_removing_hidden_checks_counts_as_a_change(prefill):
    """Assertions are not printed, but a pass that removes nothing else still did something."""
    bare, _ = Pipeline([DropExportChecks()]).run(prefill)
    with bare.graph.inserting_after(bare.sequence()):
        check = bare.graph.call_function(torch.ops.aten._assert_tensor_metadata.default, (bare.sequence(),))
    check.meta["val"] = None
    _, (step,) = Pipeline([DropExportChecks()]).run(bare)
    assert step.result.matched == 1


def test_shows_the_line_where_shapes_no_longer_fit(prefill):
    with pytest.raises(
        PostconditionError,
        match=r"shapes no longer fit at %(\S+) (.*\n)+  > %\1: (.*\n)+.*defect of lightvlm_fx; dump=",
    ):
        Pipeline([Tinker("wrongly")]).run(prefill)


@pytest.mark.parametrize(("level", "parts"), [("0", 0), ("1", 1), ("2", 2), ("3", 3)])
def test_talks_as_much_as_lightvlm_debug_asks(prefill, monkeypatch, capsys, level, parts):
    monkeypatch.setenv("LIGHTVLM_DEBUG", level)
    Pipeline([LowerAttention()]).run(prefill)
    out = capsys.readouterr().out
    assert [out.startswith("lower-attention   "), "--- before" in out, "prefill(%inputs_embeds" in out] == [
        i < parts for i in range(3)
    ]
