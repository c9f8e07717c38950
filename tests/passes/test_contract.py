"""Every pass of the catalogue keeps the contract, on plain and masked programs; and it can be broken."""

import dataclasses

import pytest
import torch

from lightvlm_fx.errors import PostconditionError, UnknownName
from lightvlm_fx.passes import EXAMPLES
from lightvlm_fx.passing.pass_base import Pass, PassResult
from lightvlm_fx.testing import check_pass, real_inputs, run, tiny_program


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
@pytest.mark.parametrize("kind", ["programs", "masked_programs"])
def test_keeps_the_contract(request, kind, example):
    for stage, program in request.getfixturevalue(kind).items():
        if stage in example.stages:
            check_pass(program, example)


def test_programs_can_be_asked_for_by_family_and_stage():
    program = tiny_program("decode", family="qwen2_vl", layers=2)
    assert (program.stage, program.facts.layers, program.facts.positions_rank) == ("decode", 2, 3)
    assert run(program, real_inputs(program))["hidden"].shape == (1, 1, 64)


@pytest.mark.parametrize("stage", ["vision", "prefil"])
def test_refuses_a_stage_that_is_none_of_the_decoders(stage):
    with pytest.raises(UnknownName, match=rf"no captured stage of the decoder named '{stage}'(.|\n)*known: decode, prefill"):
        tiny_program(stage)


@dataclasses.dataclass(frozen=True)
class Rogue(Pass):
    """Breaks one promise."""

    promise: str = "none"

    name = "rogue"
    stages = ("prefill",)

    def requires(self, program):
        pass

    def call(self, program):
        end, graph = program.output_node(), program.graph
        hidden, *others = end.args[0]
        with graph.inserting_before(end):
            new = graph.call_function(torch.ops.aten.relu.default, (hidden,))
        if self.promise == "rank":
            with graph.inserting_before(end):
                new = graph.call_function(torch.ops.aten.unsqueeze.default, (hidden, 0))
        if self.promise == "dtype":
            with graph.inserting_before(end):
                new = graph.call_function(torch.ops.aten.to.dtype, (hidden, torch.float64))
        if self.promise == "finite":
            with graph.inserting_before(end):
                new = graph.call_function(torch.ops.aten.div.Tensor, (hidden, 0.0))
        end.args = ((new, *others),)
        if self.promise == "outputs":
            end.args = ((new, *others[:-1]),)
            program.with_facts(outputs=program.facts.outputs[:-1])
        if self.promise == "inputs":
            program.inputs = (*program.inputs[1:], program.inputs[0])
        if self.promise == "weights":
            node = next(n for n in graph.nodes if n.op == "get_attr")
            copied = torch.nn.Parameter(getattr(program.graph_module, node.target).detach().clone())
            setattr(program.graph_module, node.target, copied)
        return PassResult(1, 1)

    def ensures(self, program):
        if self.promise == "ensures":
            raise PostconditionError("this is not what was promised")


@pytest.mark.parametrize(
    ("promise", "message"),
    [
        ("rank", "changed the dtype or rank of output hidden"),
        ("dtype", "changed the dtype or rank of output hidden"),
        ("finite", "output hidden is not finite"),
        ("outputs", "took outputs away without declaring it"),
        ("inputs", "are not the declared inputs"),
        ("weights", "copied the weight"),
        ("none", "a second run changed the program again; refuse it in requires"),
    ],
)
def test_finds_a_broken_promise(prefill, promise, message):
    with pytest.raises(AssertionError, match=message):
        check_pass(prefill, Rogue(promise))


def test_hands_on_a_broken_postcondition(prefill):
    with pytest.raises(PostconditionError, match="not what was promised"):
        check_pass(prefill, Rogue("ensures"))
