"""Tier 5: with the inductor backend, one compile a bucket serves prompts and answers of every length."""

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.exporters.torch_compile import compiled_graphs
from lightvlm_fx.schedule import Schedule

SCHEDULE = Schedule.preset("lightvlm", keep=0.3, layers=(1, 2))
CHUNK = 16  # instead of 256, so that short answers outgrow their buffers


@pytest.fixture(scope="module")
def tiny():
    return zoo.build("llava", layers=3)


@pytest.fixture(scope="module")
def small_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightvlm_fx.runtime.cache.CHUNK", CHUNK)
        yield


@pytest.fixture(scope="module")
def fast(tiny, small_chunks):
    """Compiled and warmed up on one row with one picture."""
    torch._dynamo.reset()
    model = lightvlm.compile(tiny.model, SCHEDULE, backend="inductor")
    model.lightvlm.warm_up(tiny.inputs(text=(8,), images=(1,)))
    return model


@pytest.fixture(scope="module")
def reference(tiny, small_chunks):
    return lightvlm.compile(tiny.model, SCHEDULE, backend="eager")


def generate(model, inputs, new_tokens):
    return model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
                          output_logits=True, return_dict_in_generate=True)  # fmt: skip


@pytest.mark.parametrize(("text", "new_tokens"), [(8, 4), (5, 2), (13, 40), (29, 6)])
def test_nothing_is_compiled_twice(tiny, fast, reference, text, new_tokens):
    """Shorter and longer prompts; 40 new tokens outgrow every buffer."""
    inputs = tiny.inputs(text=(text,), images=(1,))
    expected = generate(reference, inputs, new_tokens)
    graphs = compiled_graphs()
    out = generate(fast, inputs, new_tokens)
    assert compiled_graphs() == graphs
    assert out.sequences.tolist() == expected.sequences.tolist()
    want, got = torch.stack(expected.logits), torch.stack(out.logits)
    assert (want - got).abs().max() <= 1e-4 * want.abs().max()


def test_buffers_grow_while_nothing_is_compiled(tiny, fast):
    """That the long answer above does outgrow the buffers it begins with."""
    inputs = tiny.inputs(text=(13,), images=(1,))
    short, long = (generate(fast, inputs, n).past_key_values.layers for n in (1, 40))
    for before, after in zip(short, long, strict=True):
        assert after.keys.shape[2] >= before.keys.shape[2] + CHUNK
    assert len({layer.keys.shape[2] for layer in long}) == 3  # one capacity a stage


def test_one_row_is_a_kind_of_its_own_and_every_other_number_is_one(tiny, fast):
    graphs, buckets = compiled_graphs(), len(fast.lightvlm.report.buckets)
    inputs = tiny.inputs(text=(9, 6), images=(1, 1))
    first = generate(fast, inputs, 3)
    assert len(fast.lightvlm.report.buckets) == buckets + 2
    assert compiled_graphs() == graphs + 2  # of the prompt and of a step: several pictures are no other kind than one
    assert generate(fast, inputs, 3).sequences.tolist() == first.sequences.tolist()
    generate(fast, tiny.inputs(text=(9, 6, 12), images=(1, 1, 1)), 3)
    assert compiled_graphs() == graphs + 2


@pytest.mark.compat
def test_a_bounded_cache_is_one_step_for_every_length(tiny):
    """Its buffers never change size: answers that turn the cache over, after shorter and longer prompts."""
    schedule = Schedule.preset("h2o", capacity=24, recent=4)
    fast, eager = (lightvlm.compile(tiny.model, schedule, backend=backend) for backend in ("inductor", "eager"))
    fast.lightvlm.warm_up(tiny.inputs(text=(8,), images=(1,)))
    graphs = compiled_graphs()
    for text, new_tokens in ((8, 40), (5, 3), (13, 12)):
        inputs = tiny.inputs(text=(text,), images=(1,))
        expected = generate(eager, inputs, new_tokens)
        out = generate(fast, inputs, new_tokens)
        assert compiled_graphs() == graphs
        assert out.sequences.tolist() == expected.sequences.tolist()
        assert {layer.keys.shape[2] for layer in out.past_key_values.layers} == {24}
