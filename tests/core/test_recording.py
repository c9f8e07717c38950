"""What a compiled model's graphs are given, for those who listen."""

import pytest

import lightvlm_fx as lightvlm


def test_hears_the_prefill_and_every_step_while_it_listens(llava):
    fast, heard = lightvlm.compile(llava.model, "none", backend="eager"), []
    with fast.lightvlm.recording(lambda what, given: heard.append((what, given["inputs_embeds"].shape[1]))):
        fast.lightvlm.warm_up(llava.inputs(), new_tokens=3)
    fast.lightvlm.warm_up(llava.inputs(), new_tokens=3)
    assert heard == [("prefill", llava.inputs()["input_ids"].shape[1]), ("step", 1), ("step", 1)]
    assert fast.lightvlm.captured.keys() == {"prefill", "decode"}


def test_an_inner_listener_leaves_the_outer_one_as_it_was(llava):
    fast, outer, inner = lightvlm.compile(llava.model, "none", backend="eager"), [], []
    with fast.lightvlm.recording(lambda what, given: outer.append(what)):
        with pytest.raises(ZeroDivisionError), fast.lightvlm.recording(lambda what, given: inner.append(1 / 0)):
            fast.lightvlm.warm_up(llava.inputs(), new_tokens=1)
        fast.lightvlm.warm_up(llava.inputs(), new_tokens=1)
    assert outer == ["prefill"]
