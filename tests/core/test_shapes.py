"""Values on the nodes of an edited graph are what running it on fake tensors gives."""

from dataclasses import dataclass

import pytest
import torch

from lightvlm_fx.compat import equal_sizes, shapes_in_python
from lightvlm_fx.errors import PostconditionError
from lightvlm_fx.graph import shapes
from lightvlm_fx.graph.edit import Editor, crossing, first_of_layer, replace_after
from lightvlm_fx.graph.match import hidden_state
from lightvlm_fx.graph.ports import Port
from lightvlm_fx.graph.pretty import exact
from lightvlm_fx.graph.program import value
from lightvlm_fx.passes import pipelines
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passing.pass_base import Pass, PassResult
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.testing import tiny_programs

KEPT = Port("index", "[B, K]", "which tokens stay")
CASES = {  # one kind of mask or another; M-RoPE and side inputs of layers; windows and two kinds of rotation
    "one row": Schedule.preset("pyramiddrop"),
    "masked rows": Schedule.preset("lightvlm", keep=0.3),
    "qwen3_vl": Schedule.preset("lightvlm", keep=0.3, layers=(1,), score="received", combine="recover"),
    "gemma3": Schedule.preset("lightvlm", keep=0.3, layers=(1,)),
    # rotations and experts whose sizes are products: nodes that have to be run
    "glm4v": Schedule.preset("lightvlm", keep=0.3, layers=(1,)),
    "qwen3_vl_moe": Schedule.preset("lightvlm", keep=0.3, layers=(1,)),
}


@pytest.mark.parametrize("case", CASES)
def test_values_are_what_running_every_node_gives(case, programs, masked_programs):
    shared = {"one row": programs, "masked rows": masked_programs}
    captured = (shared.get(case) or tiny_programs(family=case, layers=2))["prefill"]
    after, _ = pipelines.prefill(CASES[case], captured.facts.layers).run(captured)
    with shapes_in_python():
        shapes.check_shapes(after)


def test_a_wrong_value_shows_against_torch(prefill):
    wrong = prefill.clone()
    node = next(n for n in wrong.graph.nodes if n.target is torch.ops.aten.add.Tensor)
    node.meta["val"] = value(node)[:, 1:]
    with shapes_in_python(), pytest.raises(PostconditionError, match=rf"expected f32\[.* at %{node.name}, as torch infers it, found f32\["):
        shapes.check_shapes(wrong)


def test_the_debug_switch_compares_with_torch(prefill, monkeypatch):
    checked = []
    monkeypatch.setenv("LIGHTVLM_DEBUG", "4")
    monkeypatch.setattr("lightvlm_fx.passing.pipeline.check_shapes", checked.append)
    after, _ = Pipeline([ReduceTokens(layer=1)]).run(prefill)
    assert checked == [after]


def test_most_values_after_a_cut_are_not_run(prefill, monkeypatch):
    ran = set()
    run = shapes._run
    monkeypatch.setattr(shapes, "_run", lambda program, node: ran.add(node.name) or run(program, node))
    after, _ = Pipeline([ReduceTokens(layer=1)]).run(prefill)
    captured = {n.name: exact(value(n)) for n in prefill.graph.nodes}
    changed = {n.name for n in after.graph.nodes if n.name in captured and captured[n.name] != exact(value(n))}
    assert len(changed) > 100
    assert len(ran & changed) < len(changed) / 10


class Edit(Pass):
    name = "edit"
    stages = ("prefill",)

    def requires(self, program):
        pass

    def ensures(self, program):
        pass


@dataclass(frozen=True)
class Forgetful(Edit):
    """Shortens what layer 1 reads by two tokens, but not the angles of its positions."""

    def call(self, program):
        cut = first_of_layer(program, 1)
        hidden = hidden_state(program, crossing(program, cut), value(program.sequence()).shape[1])
        shorter = Editor(program, cut).call("shorter", torch.ops.aten.slice.Tensor, hidden, 1, 2)
        replace_after(program, cut, hidden, shorter)
        return PassResult(1, 1)


@dataclass(frozen=True)
class Unequal(Edit):
    """Brings what the last sum reads to a size of its own: it meets the old one after it."""

    def call(self, program):
        total = [n for n in program.graph.nodes if n.target is torch.ops.aten.add.Tensor and value(n).ndim == 3][-1]
        index = program.add_input(KEPT, value(total).new_empty(1, program.new_size("kept"), dtype=torch.int64))
        shorter = Editor(program, total).call("shorter", torch.ops.lightvlm.take_tokens.default, total.args[0], index, 0, 1)
        total.update_arg(0, shorter)
        return PassResult(1, 1)


def test_a_stale_length_shows_where_it_meets_the_new_one(prefill):
    with pytest.raises(PostconditionError, match=r"shapes no longer fit at %view_3 (.*\n)+  > %view_3: .*@layers.1.self_attn"):
        Pipeline([Forgetful()]).run(prefill)


def test_a_stale_length_shows_where_torch_would_take_it_for_the_new_one(prefill):
    """Two symbolic sizes that meet in a sum: torch.export's shape environment notes that they must be equal, and goes on."""
    with pytest.raises(PostconditionError, match=r"shapes no longer fit at %\w+ .*it takes sizes for equal, or for numbers: "):
        Pipeline([Unequal()]).run(prefill)


@pytest.mark.parametrize("case", CASES)
def test_rewriting_assumes_nothing_of_sizes(case, programs, masked_programs):
    """Captures are shared between schedules: what one takes for equal, all would."""
    shared = {"one row": programs, "masked rows": masked_programs}
    captured = (shared.get(case) or tiny_programs(family=case, layers=2))["prefill"]
    like = value(captured.sequence())
    before = equal_sizes(like)
    pipelines.prefill(CASES[case], captured.facts.layers).run(captured)
    assert equal_sizes(like) == before
