"""Proportional attention: keys that count as the tokens they stand for."""

import pytest
import torch
from batches import OPS
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.ops.attention import attend
from lightvlm_fx.ops.cached_attention import attend_cached, cache_mask

B, H, D = 2, 2, 4
kinds = st.sampled_from(["causal", "boolean", "additive"])


def mask_of(kind, k, draw):
    """A mask and what it lets through."""
    allowed = torch.ones(k, k, dtype=torch.bool).tril().expand(B, 1, k, k)
    if kind == "causal":
        return None, allowed
    allowed = allowed & (torch.rand(B, 1, k, k, generator=draw) > 0.3) | torch.eye(k, dtype=torch.bool)
    return (allowed if kind == "boolean" else torch.where(allowed, 0.0, float("-inf"))), allowed


@given(st.integers(1, 6), kinds, st.integers(0, 999))
def test_adds_the_log_of_the_size_to_keys_that_may_be_seen(k, kind, seed):
    draw = torch.Generator().manual_seed(seed)
    mask, allowed = mask_of(kind, k, draw)
    size = torch.randint(0, 9, (B, k), generator=draw).float()  # 0: a slot that stands for nothing, as 1
    bias = OPS.key_bias(mask, size)
    expected = size.clamp_min(1).log()[:, None, None].expand(B, 1, k, k)
    assert bias.dtype == torch.float32
    assert bias[allowed].equal(expected[allowed])
    assert bool((bias[~allowed] == float("-inf")).all())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 999))
def test_merging_equal_keys_leaves_attention_as_it_was(copies, seed):
    """A query over n copies of a key attends as over one key of size n."""
    draw = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(B, H, len(copies), D, generator=draw) for _ in range(2))
    q = torch.randn(B, H, 1, D, generator=draw)
    repeats = torch.tensor(copies)
    full = attend(
        q, *(x.repeat_interleave(repeats, 2) for x in (k, v)), torch.ones(1, 1, 1, sum(copies)), 0.5
    )
    everything = torch.ones(B, 1, len(copies), len(copies), dtype=torch.bool)
    bias = OPS.key_bias(everything, repeats.float().expand(B, -1))[:, :, -1:]
    torch.testing.assert_close(attend(q, k, v, bias, 0.5), full)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 999))
def test_a_cache_of_merged_keys_answers_as_the_full_one(softcap, copies, seed):
    draw = torch.Generator().manual_seed(seed)
    n, total, repeats = len(copies), sum(copies), torch.tensor(copies)
    past = [torch.randn(B, H, n, D, generator=draw) for _ in range(2)]
    new = [torch.randn(B, H, 1, D, generator=draw) for _ in range(3)]

    def step(keys, values, size, used):
        buffers = [torch.nn.functional.pad(x, (0, 0, 0, 3)) for x in (keys, values)]
        position = torch.nn.functional.pad(torch.arange(used), (0, 3), value=-1).expand(B, -1).clone()
        position[:, used] = total
        slot, query = torch.tensor([used]), torch.tensor([total])
        return attend_cached(*new, *buffers, slot, cache_mask(position, query, 0, size), 0.5, softcap)

    full = step(*(x.repeat_interleave(repeats, 2) for x in past), None, total)
    sizes = torch.nn.functional.pad(repeats.float(), (0, 3), value=1.0).expand(B, -1)
    torch.testing.assert_close(step(*past, sizes, n), full)
