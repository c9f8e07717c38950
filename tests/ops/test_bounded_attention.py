"""Decoding over a bounded cache against plain attention, against masking instead of overwriting, and against loops."""

from typing import NamedTuple

import pytest
import torch
from batches import GROUPS, HEADS, OPS, WIDTH
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import pad

from lightvlm_fx.ops.bounded_attention import attend_bounded, shrink
from lightvlm_fx.ops.segments import TEXT

SCALE = WIDTH**-0.5
RULES = ("age", "attention", "marks")
seeds, flags = st.integers(0, 2**31), st.booleans()


class Cache(NamedTuple):
    keys: torch.Tensor
    values: torch.Tensor
    position: torch.Tensor
    score: torch.Tensor | None
    size: torch.Tensor | None
    start: torch.Tensor

    def row(self, b):
        return Cache(*(None if x is None else x[b : b + 1].clone() for x in self))

    def held(self, b, g):
        return sorted(i for i in self.position[b, g].tolist() if i >= 0)

    def attend(self, q, k, v, query, slot=None, rule="age", softcap=0.0, window=0, sinks=0, recent=0, decay=0.9, limit=None):
        return attend_bounded(q, k, v, *self[:5], query, self.start, slot, SCALE, softcap, window, rule, sinks, recent, decay, limit)


def draw(seed, n, rows=1):
    """q, k, v of n tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, n, WIDTH, generator=generator) for heads in (HEADS, GROUPS, GROUPS)]


def cache(k, v, used, spare, rule, shared, start, seed, sized=False):
    """The tokens of k, v [B, G, S, d] in `used` slots of any order, other numbers in empty ones; `spare` slots after."""
    generator, start = torch.Generator().manual_seed(seed), torch.tensor(start)
    shape, last = (len(k), 1 if shared else GROUPS), k.shape[2] - 1
    place = torch.rand(*shape, used, generator=generator).argsort(-1)  # -1 where it is padding, or beyond the tokens
    position = torch.where((place >= start[:, None, None]) & (place <= last), place, -1)
    keys, values = (OPS.take_entries(x, place.clamp_max(last)) for x in (k, v))
    score, size = (torch.rand(*shape, used, generator=generator) + least for least in (0, 1))
    keys, values = (pad(x, (0, 0, 0, spare), value=9.0) for x in (keys, values))
    score, size = (pad(x, (0, spare), value=9.0) for x in (score, size))
    return Cache(keys, values, pad(position, (0, spare), value=-1), None if rule == "age" else score, size if sized else None, start)


def by_position(cache, x, length, fresh):
    """x [B, G, C] of slots as [B, G, length] of sequence indices; `fresh` where no slot holds it."""
    out = torch.full((*x.shape[:2], length + 1), fresh)
    return out.scatter(2, torch.where(cache.position < 0, length, cache.position), x)[..., :length]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 3])
@given(flags, flags, flags, st.sampled_from([0.0, 2.0]), st.sampled_from([0, 3]), seeds)
def test_with_room_for_all_it_is_plain_attention(rule, n, shared, sized, append, softcap, window, seed):
    """And the score grows by what each entry received, or by how many heads gave it a fair share."""
    s, slots = 6 + n, 9
    q, k, v = draw(seed, s, rows=2)
    full = cache(k[:, :, :6], v[:, :, :6], slots, n, rule, shared, (0, 2), seed, sized)
    size = torch.ones(2, 1, s) if full.size is None else by_position(full, full.size, s, 1.0)
    before = None if full.score is None else by_position(full, full.score, s, 0.0)
    query = torch.arange(6, s)
    slot = torch.arange(slots, slots + n) if append else None
    out = full.attend(q[:, :, 6:], k[:, :, 6:], v[:, :, 6:], query, slot, rule, softcap, window)

    per_head = [x.repeat_interleave(HEADS // GROUPS, 1) for x in (k, v, size.expand(-1, GROUPS, -1))]
    key = torch.arange(s)
    seen = (key <= query[:, None]) & (key >= full.start[:, None, None]) & ((query[:, None] - key < window) if window else True)
    logits = q[:, :, 6:] @ per_head[0].transpose(2, 3) * SCALE
    logits = (torch.tanh(logits / softcap) * softcap if softcap else logits) + per_head[2].log()[:, :, None]
    attended = logits.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    torch.testing.assert_close(out, (attended @ per_head[1]).transpose(1, 2))
    if before is not None:
        fair = (attended >= 1 / seen.sum(-1)[:, None, :, None]) & seen[:, None]
        ages = torch.arange(fair.shape[2]).flip(0)
        received = (fair * (0.9**ages)[:, None] if rule == "marks" else attended).sum(2).unflatten(1, (before.shape[1], -1)).mean(2)
        torch.testing.assert_close(by_position(full, full.score, s, 0.0), before * (0.9**n if rule == "marks" else 1) + received)


@pytest.mark.parametrize("rule", RULES)
@given(flags, flags, st.integers(0, 2), st.integers(0, 3), st.integers(1, 2), seeds)
def test_overwriting_is_masking(rule, shared, sized, sinks, recent, n, seed):
    """The same entries over 30 steps: as many as fit, the row's first and last among them."""
    slots, steps, start = sinks + recent + n + 1, 30, (0, 1)
    q, k, v = draw(seed, slots + steps * n, rows=2)
    prompt = [x[:, :, :slots] for x in (k, v)]
    small, large = (cache(*prompt, slots, spare, rule, shared, start, seed, sized) for spare in (0, steps * n))
    for first in range(slots, slots + steps * n, n):
        query = torch.arange(first, first + n)
        new, options = [x[:, :, query] for x in (q, k, v)], {"rule": rule, "sinks": sinks, "recent": recent}
        out = small.attend(*new, query, **options)
        torch.testing.assert_close(out, large.attend(*new, query, query, limit=torch.tensor([slots, slots]), **options))
        for b in range(2):
            for g in range(small.position.shape[1]):
                held = small.held(b, g)
                assert held == large.held(b, g)
                assert len(held) == slots
                assert {*range(start[b], start[b] + sinks), *range(first + n - max(recent, n), first + n)} <= {*held}


@pytest.mark.parametrize("rule", RULES)
@given(flags, flags, st.integers(0, 2), st.integers(0, 2), st.integers(5, 12), st.integers(3, 12), seeds)
def test_shrink_keeps_the_most_valuable(rule, shared, sized, sinks, recent, capacity, n, seed):
    """Sinks and recent entries above all; then by score, or the newest. The others' slots are empty."""
    _, k, v = draw(seed, n, rows=2)
    full = cache(k, v, 12, 0, rule, shared, (0, 2), seed, sized)
    before = Cache(*(None if x is None else x.clone() for x in full))
    shrink(*full[:5], torch.tensor([n]), full.start, sinks, recent, capacity)
    for b in range(2):
        for g in range(full.position.shape[1]):
            at = {int(p): i for i, p in enumerate(before.position[b, g]) if p >= 0}
            first = int(full.start[b])

            def worth(i, b=b, g=g, at=at, first=first):
                return i < first + sinks or i > n - recent, i if before.score is None else before.score[b, g, at[i]].item()

            assert full.held(b, g) == sorted(sorted(at, key=worth, reverse=True)[:capacity])
            assert bool((full.position[b, g, capacity:] == -1).all())
            slots = torch.nonzero(full.position[b, g] >= 0).flatten()
            was = torch.tensor([at[i] for i in full.position[b, g, slots].tolist()])
            for x, old in zip(full[3:5], before[3:5], strict=True):
                assert x is None or x[b, g, slots].equal(old[b, g, was])
            heads = range(GROUPS) if shared else [g]
            for x, old in zip(full[:2], before[:2], strict=True):
                assert x[b, heads][:, slots].equal(old[b, heads][:, was])


@pytest.mark.parametrize("rule", RULES)
@given(flags, st.integers(1, 2), seeds)
def test_two_rows_are_two_runs(rule, shared, n, seed):
    q, k, v = draw(seed, 7 + 10 * n, rows=2)
    both = cache(k[:, :, :7], v[:, :, :7], 7, 0, rule, shared, (0, 3), seed)
    single = [both.row(b) for b in range(2)]
    for first in range(7, 7 + 10 * n, n):
        query = torch.arange(first, first + n)
        new, options = [x[:, :, query] for x in (q, k, v)], {"rule": rule, "sinks": 2, "recent": 2}
        out = both.attend(*new, query, **options)
        for b in range(2):
            alone = single[b].attend(*(x[b : b + 1] for x in new), query, **options)
            torch.testing.assert_close(out[b : b + 1], alone)
            for g in range(both.position.shape[1]):
                assert both.held(b, g) == single[b].held(0, g)


@pytest.mark.parametrize("rule", ["attention", "marks"])
@given(st.integers(1, 9), seeds)
def test_the_score_goes_on_where_that_of_the_prompt_ended(rule, prompt, seed):
    """As if all had been the prompt."""
    s, window = prompt + 4, 20
    q, k, v = draw(seed, s)

    def score(n):
        segment = torch.full((1, n), TEXT)
        if rule == "marks":
            return OPS.kv_score_marks(q[:, :, :n], k[:, :, :n], segment, SCALE, window)
        return OPS.kv_score_attention(q[:, :, :n], k[:, :, :n], segment, None, SCALE)

    position = pad(torch.arange(prompt).repeat(1, GROUPS, 1), (0, 4), value=-1)
    running = Cache(k.clone(), v.clone(), position, pad(score(prompt), (0, 4)), None, torch.tensor([0]))
    for i in range(prompt, s):
        at = torch.tensor([i])
        running.attend(*(x[:, :, at] for x in (q, k, v)), at, at, rule, decay=1 - 1 / window)
    torch.testing.assert_close(running.score, score(s))
