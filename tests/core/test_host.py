"""No step reads a value on the host: what a decoder call asks a tensor for, while a bounded cache answers."""

from functools import cache

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.bench.reads import Reads
from lightvlm_fx.schedule import Schedule

STEPPING = {
    "streaming-llm": {"capacity": 40}, "h2o": {"capacity": 40}, "scissorhands": {"capacity": 40}, "lightvlm": {"keep": 0.5, "capacity": 40},
}  # fmt: skip


@cache
def tiny():
    return zoo.build("llava", layers=4)


def read_in_steps(name, count=4):
    """What `count` steps after a prompt read on the host."""
    fast = lightvlm.compile(tiny().model, Schedule.preset(name, **STEPPING[name]), backend="eager")
    with torch.no_grad():
        held = fast(**tiny().inputs(text=(9, 6), images=(1, 1)), use_cache=True).past_key_values
        token = torch.full((2, 1), 30)
        fast(input_ids=token, past_key_values=held, use_cache=True)  # opens the bucket
        with Reads() as reads:
            for _ in range(count):
                fast(input_ids=token, past_key_values=held, use_cache=True)
    return reads.found


@pytest.mark.parametrize("name", STEPPING)
def test_a_step_reads_nothing_on_the_host(name):
    assert read_in_steps(name) == []


def test_the_watch_sees_what_it_watches_for():
    with Reads() as reads:
        if torch.ones(1) > 0:
            torch.ones(2).nonzero()
        float(torch.ones(1))
        torch.ones(2).tolist()
    assert len(reads.found) == 4
    torch.ones(2).tolist()
    assert len(reads.found) == 4
