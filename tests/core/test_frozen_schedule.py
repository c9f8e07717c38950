"""`frozen_schedule`: what an adaptive budget led to, as constants."""

import pytest

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import NotSupported
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import answer, difference

ADAPTIVE = Schedule.preset("aircache", capacity=0.25)


@pytest.fixture(scope="module")
def tiny():
    return zoo.build("llava", layers=3)


@pytest.fixture(scope="module")
def plain(tiny):
    return lightvlm.compile(tiny.model, "none", backend="eager")


def test_a_frozen_schedule_answers_its_prompt_as_the_adaptive_one(tiny, plain, tmp_path):
    fast, inputs = plain.lightvlm.with_schedule(ADAPTIVE), tiny.inputs(text=(9,), images=(1,))
    adaptive = answer(fast, inputs, 6)
    counts = fast.lightvlm._decoder.last.stayed["kv_count"][0]
    assert len(set(counts.tolist())) > 1  # layers got different budgets
    frozen = fast.lightvlm.frozen_schedule()
    assert frozen.kv.budgets.data == [float(count) for count in counts]
    assert frozen.model_copy(update={"kv": ADAPTIVE.kv}) == ADAPTIVE  # nothing else changed
    frozen.save(tmp_path / "frozen.toml")
    again = plain.lightvlm.with_schedule(Schedule.load(tmp_path / "frozen.toml"))
    constant = answer(again, inputs, 6)
    assert difference(adaptive, constant) <= 1e-6
    for ours, theirs in zip(constant.past_key_values.layers, adaptive.past_key_values.layers, strict=True):
        for head, other in zip(ours.table.position.flatten(0, 1), theirs.table.position.flatten(0, 1), strict=True):
            assert head[head >= 0].tolist() == other[other >= 0].tolist()


def test_it_does_not_adapt_any_more(tiny, plain):
    """Another prompt, which would lead to other budgets, gets those of the first."""
    fast = plain.lightvlm.with_schedule(ADAPTIVE)
    prompts = [tiny.inputs(text=(9,), images=(1,), seed=seed) for seed in (0, 3)]
    counts = []
    for inputs in prompts:
        answer(fast, inputs, 1)
        counts.append(fast.lightvlm._decoder.last.stayed["kv_count"][0].tolist())
    assert counts[0] != counts[1]
    answer(fast, prompts[0], 1)
    cache = answer(plain.lightvlm.with_schedule(fast.lightvlm.frozen_schedule()), prompts[1], 1).past_key_values
    text = prompts[1]["input_ids"].shape[1] - tiny.visual_tokens
    assert [int((layer.table.position[:, 0] >= 0).sum()) - text for layer in cache.layers] == counts[0]


@pytest.mark.parametrize("name", ["none", "h2o"])
def test_refuses_where_budgets_do_not_adapt(tiny, plain, name):
    fast = plain.lightvlm.with_schedule(name)
    answer(fast, tiny.inputs(text=(9,), images=(1,)), 1)
    with pytest.raises(NotSupported, match="no budgets to freeze: they do not adapt to the prompt, nothing was dropped, or no prompt came"):
        fast.lightvlm.frozen_schedule()


def test_refuses_before_a_prompt_came(plain):
    with pytest.raises(NotSupported, match="no budgets to freeze"):
        plain.lightvlm.with_schedule(ADAPTIVE).lightvlm.frozen_schedule()
