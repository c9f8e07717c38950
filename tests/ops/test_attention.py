"""The lowered attention, and attention over a cache, against plain softmax attention."""

from inspect import signature

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.graph.attention import Attend, Marker
from lightvlm_fx.ops.attention import attend
from lightvlm_fx.ops.cached_attention import attend_cached, cache_mask, hold, shifted

B, G, D, SCALE = 2, 2, 8, 0.3
repeats, caps, windows = st.integers(1, 2), st.sampled_from([0.0, 2.0]), st.sampled_from([0, 3])


def plain(q, k, v, allowed, softcap):
    """Softmax attention [B, Q, H, d], head by group; `allowed` broadcasts to [B, H, Q, S]."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = q @ k.transpose(2, 3) * SCALE
    logits = torch.tanh(logits / softcap) * softcap if softcap else logits
    return (logits.masked_fill(~allowed, float("-inf")).softmax(-1) @ v).transpose(1, 2)


@given(
    st.integers(1, 9), repeats, caps, st.sampled_from(["causal", "boolean", "additive"]), st.integers(0, 999)
)
def test_attend_is_softmax_attention(s, repeat, softcap, kind, seed):
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, heads, s, D, generator=draw) for heads in (G * repeat, G, G))
    allowed = torch.ones(s, s, dtype=torch.bool).tril()
    if kind != "causal":
        allowed = allowed & (torch.rand(B, 1, s, s, generator=draw) > 0.3) | torch.eye(s, dtype=torch.bool)
    mask = {
        "causal": None,
        "boolean": allowed,
        "additive": torch.where(allowed, 0.0, torch.finfo(torch.float32).min),
    }[kind]
    expected = plain(q, k, v, allowed, softcap)
    torch.testing.assert_close(attend(q, k, v, mask, SCALE, softcap), expected)
    marker = torch.ops.lightvlm.attention(q, k, v, mask, SCALE, 0, 0, softcap)
    torch.testing.assert_close(marker, expected)
    assert marker.shape == (B, s, G * repeat, D)


@given(st.integers(0, 6), st.integers(1, 3), windows, st.integers(0, 99))
def test_cache_mask_lets_a_query_read_what_came_before_it(held, new, window, seed):
    """Slot by slot: not empty, not after the query, not outside the window."""
    draw = torch.Generator().manual_seed(seed)
    position = torch.randint(-1, 10, (B, held + new), generator=draw)
    query = torch.arange(8, 8 + new)
    mask = cache_mask(position, query, window)
    assert mask.shape == (B, 1, new, held + new)
    for b in range(B):
        for i, now in enumerate(query.tolist()):
            for slot, at in enumerate(position[b].tolist()):
                near = not window or now - at < window
                assert bool(mask[b, 0, i, slot]) == (0 <= at <= now and near)


@given(st.integers(1, 3), repeats, caps, windows, st.integers(0, 999))
def test_attention_over_a_cache_is_attention_over_what_it_holds(new, repeat, softcap, window, seed):
    """Tokens removed at a cut leave gaps in the sequence indices; unused slots hold garbage nobody reads."""
    draw = torch.Generator().manual_seed(seed)
    past, capacity, seen = 5, 12, 9
    kept = torch.stack([torch.randperm(seen, generator=draw)[:past].sort().values for _ in range(B)])
    kept[0, 0] = -1  # padding
    position = torch.full((B, capacity), -1)
    position[:, :past] = kept
    keys, values = (torch.full((B, G, capacity, D), 1e4) for _ in range(2))
    old_k, old_v = (torch.randn(B, G, past, D, generator=draw) for _ in range(2))
    keys[:, :, :past], values[:, :, :past] = old_k, old_v
    q, k, v = (torch.randn(B, heads, new, D, generator=draw) for heads in (G * repeat, G, G))
    query, slot = torch.arange(seen, seen + new), torch.arange(past, past + new)

    held = hold(position, slot, query)
    mask = cache_mask(held, query, window)
    out = attend_cached(q, k, v, keys, values, slot, mask, SCALE, softcap)

    at = torch.cat([kept, query.expand(B, -1)], 1)[:, None, None]
    now = query[None, None, :, None]
    allowed = (at >= 0) & (at <= now) & ((now - at < window) if window else True)
    expected = plain(q, torch.cat([old_k, k], 2), torch.cat([old_v, v], 2), allowed, softcap)
    torch.testing.assert_close(out, expected)
    assert keys[:, :, past : past + new].equal(k)
    assert values[:, :, past : past + new].equal(v)
    assert bool((keys[:, :, past + new :] == 1e4).all())
    assert held[:, past : past + new].equal(query.expand(B, -1))


def test_shifted_counts_on_from_the_renumbered_prompt():
    assert shifted(torch.tensor([[9, 10]]), torch.tensor([3, 0])).tolist() == [[6, 7], [9, 10]]


def test_the_names_of_an_attentions_arguments_are_those_of_its_code():
    marked = torch.ops.lightvlm.attention.default._schema.arguments
    assert Marker._fields == tuple(argument.name for argument in marked)
    assert Attend._fields == tuple(signature(attend).parameters)
    assert Marker(*range(8)).args == (*range(8),)
    assert Marker(*range(9)).lowered.args == (0, 1, 2, 3, 4, 7, 8)
