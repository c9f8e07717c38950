"""Which calls share a graph: those that it computes alike, and no others."""

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.model.capture import Call
from lightvlm_fx.schedule import Cut, Schedule
from lightvlm_fx.support import answer, difference


def call(rows=2, tokens=9, *, dtype=torch.float32, mask=None, **more):
    """Arguments of a decoder as a model hands them on."""
    given = {"inputs_embeds": torch.zeros(rows, tokens, 16, dtype=dtype), "position_ids": torch.arange(tokens).expand(rows, -1)}
    return given | ({} if mask is None else {"attention_mask": mask}) | more


def four(rows=2, tokens=9, dtype=torch.bool):
    return torch.ones(rows, 1, tokens, tokens).to(dtype)


def deepstack(*features, rows=2, tokens=9):
    return [torch.zeros(rows, tokens, width) for width in features]


OTHERS = {  # each is another graph than every one beside it
    "plain": call(), "one row": call(1), "half precision": call(dtype=torch.float16),
    "wider": call() | {"inputs_embeds": torch.zeros(2, 9, 32)},
    "whole positions": call() | {"position_ids": torch.arange(9).expand(3, 2, -1)},
    "float positions": call() | {"position_ids": torch.arange(9.0).expand(2, -1)},
    "a mask": call(mask=four()), "an additive mask": call(mask=four(dtype=torch.float32)), "a flat mask": call(mask=torch.ones(2, 9)),
    "masks by kind": call(mask={"full_attention": four()}), "masks of two kinds": call(mask={"full_attention": four(), "sliding": four()}),
    "a constant": call(scale=1), "another constant": call(scale=2), "of another type": call(scale=1.0), "a text": call(scale="1"),
    "no constant": call(scale=None), "a constant of another name": call(scales=1),
    "features": call(deepstack_visual_embeds=deepstack(16)), "more features": call(deepstack_visual_embeds=deepstack(16, 16)),
    "other features": call(deepstack_visual_embeds=deepstack(8)), "features by name": call(deepstack_visual_embeds={"0": deepstack(16)[0]}),
    "features of a flat name": call(deepstack_visual_embeds_0=deepstack(16)[0]),
}  # fmt: skip


@pytest.mark.parametrize("free", ["BS", "S", "B", ""])
def test_calls_that_are_computed_otherwise_have_other_keys(free):
    keys = {}
    for name, given in OTHERS.items():
        assert keys.setdefault(Call.of(given).signature(free), name) == name


def test_autocast_is_part_of_the_key():
    plain = Call.of(call()).signature()
    with torch.autocast("cpu", torch.bfloat16):
        cast = Call.of(call()).signature()
    assert cast != plain == Call.of(call()).signature()


@pytest.mark.parametrize(("other", "differs"), [(call(2, 30), "S"), (call(5), "B"), (call(5, 30), "BS"), (call(), "")])
def test_sizes_are_part_of_the_key_where_they_are_no_symbols(other, differs):
    for free in ("BS", "S", "B", ""):
        same = Call.of(call()).signature(free) == Call.of(other).signature(free)
        assert same == (set(differs) <= set(free))


def test_the_order_of_arguments_is_no_part_of_the_key():
    given = call(mask=four(), scale=1)
    assert Call.of(given).signature() == Call.of(dict(reversed(given.items()))).signature()


def test_schedules_that_share_captures_share_no_graphs():
    """One capture, and under each schedule the answer that it alone gives; in whatever order they are asked."""
    tiny = zoo.build("llava", layers=3)
    inputs = tiny.inputs(text=(7, 9), images=(1, 1))
    schedules = [Schedule(cuts=(Cut(layer=1, keep=keep, score=score),)) for keep, score in ((3, "uniform"), (4, "uniform"), (3, "density"))]
    plain = lightvlm.compile(tiny.model, "none", backend="eager")
    own = [answer(lightvlm.compile(tiny.model, s, backend="eager"), inputs, 2) for s in schedules]
    assert min(difference(a, b) for a, b in ((own[0], own[1]), (own[0], own[2]), (own[1], own[2]))) > 1e-4
    siblings = [plain.lightvlm.with_schedule(s) for s in schedules]
    for turn in (siblings, siblings[::-1]):
        for fast in turn:
            assert difference(own[siblings.index(fast)], answer(fast, inputs, 2)) == 0
    keys = [set(fast.lightvlm._decoder.graphs.entries) for fast in siblings]
    assert not keys[0] & keys[1] | keys[0] & keys[2] | keys[1] & keys[2]
    assert {len(each) for each in keys} == {2}  # a prompt and a step
