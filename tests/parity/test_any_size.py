"""Tier 4 and 5: few graphs serve pictures of every size and number, prompts of every length, and batches of any number of rows."""

import random
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.kv import Kv
from lightvlm_fx.schedule import Cut, Schedule

FEW = 5  # a prefill and a step for one row and for more, and a prefill with masks
CUTS = (Cut(layer=1, keep=0.4, score="density", combine="merge", proportional=True), Cut(layer=2, keep=1, score="last-query"))
SCHEDULES = {
    "cuts, one a count": Schedule(cuts=CUTS),
    "cuts and a capacity": Schedule(cuts=CUTS[:1], kv=Schedule.preset("lightvlm", capacity=24).kv),
    "a share": Schedule.preset("snapkv", capacity=0.7, window=4),
    "adaptive budgets": Schedule.preset("aircache", capacity=0.4),
    "a pyramid, masked": Schedule(kv=Kv(capacity=24, when="mask", budgets="pyramid", recent=4, sinks=0)),
    "compact positions": Schedule.preset("pyramiddrop", layers=(1, 2, 3)),
}


def packed(height, width):
    """Qwen2.5-VL pictures of this many patches."""
    return zoo.span(height * width // 4, [zoo.BOI], [zoo.EOI]), zoo.patches(height, width, 3 * 2 * 8 * 8)


def tiled(count):
    """InternVL pictures of this many tiles of 16 tokens."""
    one = zoo.build("internvl", layers=1).recipe

    def picture(draw):
        return {"pixel_values": torch.cat([one.picture(draw)["pixel_values"] for _ in range(count)])}

    before, after = one.span[: one.span.index(zoo.IMAGE)], one.span[len(one.span) - one.span[::-1].index(zoo.IMAGE) :]
    return (*before, *(zoo.IMAGE,) * one.span.count(zoo.IMAGE) * count, *after), picture


def split(rows, columns, size, tokens):
    """LLaVA-NeXT pictures of this many tiles beside the small one."""
    return zoo.span(tokens), zoo.tiles(1 + rows * columns, 24, size)


SIZES = {
    "qwen2_5_vl": [packed(4, 4), packed(2, 6), packed(8, 6), packed(10, 4), packed(6, 8), packed(12, 10)],
    "internvl": [tiled(1), tiled(2), tiled(4)],
    "llava_next": [split(2, 1, (48, 24), 33), split(1, 2, (24, 48), 30), split(2, 2, (48, 48), 51)],
    "smolvlm": [None],
}


def batches(family, count, most_rows=4, seed=0):
    """That many batches of a family: 1 to 4 rows, 0 to 4 pictures of some size in each, padded and not."""
    draw, tiny = random.Random(seed), zoo.build(family, layers=1)
    for number in range(count):
        size = draw.choice(SIZES[family])
        sized = tiny if size is None else replace(tiny, recipe=replace(tiny.recipe, span=size[0], picture=size[1]))
        rows = draw.randint(1, most_rows)
        images = [draw.randint(0, 4) for _ in range(rows)] if draw.random() < 0.6 else [draw.randint(0, 4)] * rows
        text = [draw.randint(8, 20)] * rows if draw.random() < 0.5 else [draw.randint(8, 20) for _ in range(rows)]
        yield sized.inputs(text=text, images=images, seed=1000 * number)


def answer(model, inputs, new_tokens=4):
    return model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, output_logits=True,
                          return_dict_in_generate=True)  # fmt: skip


def same(got, want):
    assert got.sequences.tolist() == want.sequences.tolist()
    got, want = torch.stack(got.logits), torch.stack(want.logits)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("family", SIZES)
def test_forty_batches_need_few_graphs(family):
    """And each is answered as by a model that was compiled for it alone (every eighth is looked at)."""
    tiny = zoo.build(family, layers=3)
    fast = lightvlm.compile(tiny.model, SCHEDULES["cuts, one a count"], backend="eager")
    for number, inputs in enumerate(batches(family, 40)):
        got = answer(fast, inputs)
        if number % 8 == 0:
            same(got, answer(fast.lightvlm.with_schedule(fast.lightvlm.schedule), inputs))
    assert len(fast.lightvlm.report.buckets) <= FEW


@pytest.mark.parametrize("name", SCHEDULES)
def test_whatever_the_schedule(name):
    tiny = zoo.build("internvl", layers=4)
    fast = lightvlm.compile(tiny.model, SCHEDULES[name], backend="eager")
    for number, inputs in enumerate(batches("internvl", 12, seed=1)):
        got = answer(fast, inputs)
        if number % 4 == 0:
            same(got, answer(fast.lightvlm.with_schedule(fast.lightvlm.schedule), inputs))
    assert len(fast.lightvlm.report.buckets) <= FEW


def test_a_prompt_of_one_token_does_not_spoil_later_ones():
    """It used to be what the graphs of its batch size were made for."""
    tiny = zoo.build("llava", layers=3)
    fast, other = (lightvlm.compile(tiny.model, "fastv", backend="eager") for _ in range(2))
    prompts = [tiny.inputs(text=text, images=images) for text, images in (((1, 1), (0, 0)), ((9, 9), (1, 1)), ((1,), (0,)), ((9,), (1,)))]
    wanted = [answer(other, inputs) for inputs in reversed(prompts)]  # the long ones first
    for inputs, want in zip(prompts, reversed(wanted), strict=True):
        same(answer(fast, inputs), want)


@pytest.mark.parametrize("name", ["cuts, one a count", "cuts and a capacity"])
def test_dynamo_traces_no_graph_twice(name):
    """Sizes that are equal in one batch, and the sizes 0 and 1, are nothing that a graph may rely on."""
    torch._dynamo.reset()
    tiny = zoo.build("qwen2_5_vl", layers=3)
    schedule = SCHEDULES[name]
    fast = lightvlm.compile(tiny.model, schedule, backend="aot_eager")
    eager = lightvlm.compile(tiny.model, schedule, backend="eager")
    before = counters["stats"]["unique_graphs"]
    prompts = [*batches("qwen2_5_vl", 8, seed=2), tiny.inputs(text=(1,), images=(0,)), tiny.inputs(text=(1, 1), images=(0, 0))]
    for inputs in prompts:
        same(answer(fast, inputs), answer(eager, inputs))
    assert counters["stats"]["unique_graphs"] - before <= FEW + 1  # the vision tower's


@pytest.mark.parametrize("new_tokens", [1, 4], ids=["prompt", "answer"])
def test_equal_layers_are_compiled_once(monkeypatch, new_tokens):
    """Layers of all stages are one to inductor, but for the first of a stage, and go in twos: of 7 it compiles what it compiles of 5."""
    from lightvlm_fx.exporters import regions

    compiled = []
    real = regions.inductor
    monkeypatch.setattr(regions, "inductor", lambda graph, inputs, mode: compiled.append(graph) or real(graph, inputs, mode))
    counts = []
    for layers in (5, 7):
        tiny = zoo.build("llava", layers=layers)
        compiled.clear()
        fast = lightvlm.compile(tiny.model, Schedule(cuts=CUTS), backend="inductor")
        eager = lightvlm.compile(tiny.model, Schedule(cuts=CUTS), backend="eager")
        inputs = tiny.inputs(text=(9,), images=(1,))
        same(answer(fast, inputs, new_tokens), answer(eager, inputs, new_tokens))
        counts.append(len(compiled))
    assert counts[0] == counts[1]


def test_static_makes_a_graph_a_size():
    """As CUDA graphs need it."""
    tiny = zoo.build("llava", layers=2)
    fast = lightvlm.compile(tiny.model, Schedule.preset("fastv", layer=1), backend="eager", static=True)
    for text in (8, 8, 11):
        answer(fast, tiny.inputs(text=(text,), images=(1,)), 1)
    assert [bucket.stage for bucket in fast.lightvlm.report.buckets] == ["prefill", "prefill"]


def test_a_cut_that_removes_nothing_leaves_no_nodes():
    tiny = zoo.build("llava", layers=3)
    texts = {}
    for name, schedule in {"none": "none", "all": Schedule.preset("lightvlm", keep=1.0, layers=(1, 2))}.items():
        fast = lightvlm.compile(tiny.model, schedule, backend="eager")
        answer(fast, tiny.inputs(text=(8,), images=(1,)), 2)
        texts[name] = fast.lightvlm.graph("prefill") + fast.lightvlm.graph("decode")
    assert texts["none"] == texts["all"]
