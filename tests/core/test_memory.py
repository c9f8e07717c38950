"""What one prompt holds at once: its keys and values stand once, not twice, and nothing of it stays but its caches."""

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.schedule import Schedule

LAYERS = 8


class Held(TorchDispatchMode):
    """Bytes of the storages that operators made while it was active and that are still alive; the most at any time."""

    def __init__(self, model):
        super().__init__()
        self.now, self.most, self.known = 0, 0, {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.note(x.untyped_storage())
        return out

    def note(self, storage):
        place, size = storage._cdata, storage.nbytes()
        if place in self.known:
            return
        self.known.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.gone, place, size)

    def gone(self, place, size):
        self.known.discard(place)
        self.now -= size


@pytest.fixture(scope="module")
def tiny():
    return zoo.build("llava", layers=LAYERS)


@pytest.fixture(scope="module")
def plain(tiny):
    return lightvlm.compile(tiny.model, "none", backend="eager")


def asked(fast, inputs):
    """The cache that a prompt leaves, and what stood meanwhile."""
    with torch.no_grad():
        fast(**inputs, use_cache=True, logits_to_keep=1)  # captures
        gc.collect()
        with Held(fast) as held:
            cache = fast(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    gc.collect()
    return cache, held


def of_cache(cache):
    return sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))


SCHEDULES = {
    "none": Schedule(), "cuts": Schedule.preset("lightvlm", keep=0.5, layers=(1, 2)), "a bound": Schedule.preset("snapkv", capacity=0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_nothing_of_a_prompt_stays_but_its_cache(tiny, plain, name):
    cache, held = asked(plain.lightvlm.with_schedule(SCHEDULES[name]), tiny.inputs(text=(300,), images=(4,)))
    assert of_cache(cache) <= held.now <= 1.1 * of_cache(cache)


def test_keys_and_values_stand_once(tiny, plain):
    """While they move into the cache's buffers. With a second copy of all of them it would be 2.46 times the cache."""
    cache, held = asked(plain, tiny.inputs(text=(300,), images=(4,)))
    assert held.most <= 2.2 * of_cache(cache)
