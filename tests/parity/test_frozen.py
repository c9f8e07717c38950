"""Frozen visual tokens (ShortV): a compiled model computes what its source computes when hooks put those tokens back after each layer."""

from contextlib import ExitStack, contextmanager

import pytest
import torch
from test_families import CASES, FAMILIES, NEW, tiny, unreduced
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import lightvlm_fx as lightvlm
from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.model.locate import visual_ids
from lightvlm_fx.schedule import Cut, Schedule
from lightvlm_fx.support import answer, difference

LAYERS = (0, 2)
EXACT = 1e-5  # of the largest logit


@contextmanager
def frozen(model, inputs, layers):
    """The source, whose visual tokens leave each of `layers` as they came."""
    visual = torch.isin(inputs["input_ids"], torch.tensor(visual_ids(model))).unsqueeze(-1)

    def put_back(module, args, kwargs, output):
        came = args[0] if args else kwargs["hidden_states"]
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] != visual.shape[1]:  # a decoding step
            return output
        hidden = torch.where(visual, came, hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as hooks:
        for layer in layers:
            handle = model.get_decoder().layers[layer].register_forward_hook(put_back, with_kwargs=True)
            hooks.callback(handle.remove)
        yield model


@pytest.mark.parametrize("case", ["batch", "ragged pictures", "text only"])
@pytest.mark.parametrize("family", FAMILIES)
def test_visual_tokens_leave_a_layer_as_they_came(family, case):
    model, inputs = tiny(family).model, tiny(family).inputs(**CASES[case])
    fast = unreduced(family).lightvlm.with_schedule(Schedule.preset("shortv", layers=LAYERS))
    with frozen(model, inputs, LAYERS):
        expected = answer(model, inputs, NEW)
    assert difference(expected, answer(fast, inputs, NEW)) <= EXACT
    if case != "text only":
        assert difference(expected, answer(model, inputs, NEW)) > 100 * EXACT  # it is no small change


def test_cuts_choose_by_all_queries_of_a_layer_that_freezes():
    """A score reads what every token asks; which layers freeze before it changes what the token is, not that it asks."""
    cut = Cut(layer=2, keep=0.5, score="received")
    fast = unreduced("llava").lightvlm.with_schedule(Schedule(cuts=(cut,), freeze=(1,)))
    inputs = tiny("llava").inputs(**CASES["ragged pictures"])
    first = answer(fast, inputs, NEW)
    rows = [answer(fast, tiny("llava").inputs(text=(n,), images=(i,), seed=row), NEW) for row, (n, i) in enumerate(((7, 2), (9, 1)))]
    for row, alone in enumerate(rows):
        assert torch.equal(first[0][row, -NEW:], alone[0][0, -NEW:])


def test_bounded_caches_and_frozen_layers_go_together():
    kv = Schedule.preset("h2o", capacity=24, recent=4).kv
    fast = unreduced("llava").lightvlm.with_schedule(Schedule(freeze=(1, 2), kv=kv))
    inputs = tiny("llava").inputs(text=(12,), images=(1,))
    answer(fast, inputs, NEW)
    cache = fast.generate(**inputs, max_new_tokens=NEW, return_dict_in_generate=True).past_key_values
    assert {layer.keys.shape[2] for layer in cache.layers} == {24}


WRONG = [((4,), "decoder with"), ((1, 1), "not repeat"), ((1, 0.5), "all indices"), ((), "at least one")]


@pytest.mark.parametrize(("layers", "said"), WRONG)
def test_layers_that_cannot_freeze_are_errors(layers, said):
    with pytest.raises(ScheduleError, match=said):
        lightvlm.compile(tiny("llava").model, Schedule.preset("shortv", layers=layers), backend="eager")


def test_a_file_keeps_the_layers_and_old_fingerprints_stay(tmp_path):
    schedule = Schedule.preset("shortv", layers=(3, 1))
    schedule.save(tmp_path / "s.toml")
    assert Schedule.load(tmp_path / "s.toml") == schedule
    assert schedule.freeze == (1, 3)
    assert Schedule().fingerprint == Schedule.preset("none").fingerprint != schedule.fingerprint


def test_the_default_is_the_papers_list_and_fits_any_depth():
    paper = {31, 29, 30, 28, 0, 26, 27, 25, 24, 22, 23, 21, 2, 3, 20, 18, 17, 12, 19}
    schedule = Schedule.preset("shortv")
    assert set(schedule.frozen(32)) == paper
    assert all(0 < len(schedule.frozen(depth)) <= depth for depth in range(1, 80))


class Counting(TorchDispatchMode):
    """Adds up FLOPs by torch's formulas. Its FlopCounterMode looks into what modules return, for which transformers' exporters, once used
    in a process, leave a rule that refuses caches with methods of their own.
    """

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def test_explain_counts_what_a_frozen_layer_skips():
    """As torch counts the matrices; attention, of which it counts no fused kernel, by hand: causal, and of text alone to all."""
    model, inputs = tiny("llava").model, tiny("llava").inputs(text=(9,), images=(1,))
    schedule = Schedule.preset("shortv", layers=(0, 1, 2, 3))
    full, frozen_ = (lightvlm.explain(model, made, inputs) for made in ("none", schedule))
    counted = []
    for fast in (unreduced("llava"), unreduced("llava").lightvlm.with_schedule(schedule)):
        fast.lightvlm.warm_up(inputs)
        with torch.no_grad(), Counting() as counter:
            fast(**inputs, use_cache=True)
        counted.append(counter.flops)
    config, n = model.get_decoder().config, inputs["input_ids"].shape[1]
    text = n - tiny("llava").visual_tokens
    pairs = 4 * 4 * config.num_attention_heads * config.head_dim * (n * n / 2 - n * text)
    assert full.flops - frozen_.flops == pytest.approx(counted[0] - counted[1] + pairs, rel=1e-6)
    assert (frozen_.full_flops, frozen_.tokens_per_layer) == (full.flops, full.tokens_per_layer)
    assert "4 of 4 layers" in str(frozen_)
