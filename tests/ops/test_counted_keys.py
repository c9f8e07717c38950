"""Proportional attention: keys that count as the tokens they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.ops.attention import attend
from lightvlm_fx.ops.cached_attention import attend_cached, cache_mask

B, H, D = 2, 2, 4
kinds, caps = st.sampled_from(["causal", "boolean", "additive"]), st.sampled_from([0.0, 2.0])


def mask_of(kind, k, draw):
    """A mask and what it lets through."""
    allowed = torch.ones(k, k, dtype=torch.bool).tril().expand(B, 1, k, k)
    if kind == "causal":
        return None, allowed
    allowed = allowed & (torch.rand(B, 1, k, k, generator=draw) > 0.3) | torch.eye(k, dtype=torch.bool)
    return (allowed if kind == "boolean" else torch.where(allowed, 0.0, float("-inf"))), allowed


def biased(q, k, v, allowed, size, scale, softcap=0.0):
    """Softmax attention in float64 with the log of the size on every logit: [B, S, H, d]."""
    q, k, v = (x.double() for x in (q, k.repeat_interleave(q.shape[1] // k.shape[1], 1), v.repeat_interleave(q.shape[1] // v.shape[1], 1)))
    logits = q @ k.transpose(2, 3) * scale
    logits = torch.tanh(logits / softcap) * softcap if softcap else logits
    logits = logits + size.double().clamp_min(1).log()[:, None, None]
    return (logits.masked_fill(~allowed, float("-inf")).softmax(-1) @ v).transpose(1, 2)


@given(st.integers(1, 6), st.sampled_from([(4, 4), (4, 6), (24, 4), (4, 24)]), kinds, caps, st.integers(0, 999))
def test_adds_the_log_of_the_size_to_the_logits(s, widths, kind, softcap, seed):
    """Of keys that may be seen; keys and values may differ in width, and heads be grouped."""
    draw = torch.Generator().manual_seed(seed)
    mask, allowed = mask_of(kind, s, draw)
    q, k = (torch.randn(B, heads, s, widths[0], generator=draw) for heads in (2 * H, H))
    v = torch.randn(B, H, s, widths[1], generator=draw)
    size = torch.randint(0, 9, (B, s), generator=draw).float()  # 0: a slot that stands for nothing, as 1
    made = attend(q, k, v, mask, 0.3, softcap, size)
    torch.testing.assert_close(made.double(), biased(q, k, v, allowed, size, 0.3, softcap), atol=2e-6, rtol=1e-5)
    assert made.is_contiguous()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_is_as_exact_as_the_dtype(dtype, error):
    """Large sizes too, whose logs half precision would round."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 300, 64, generator=draw).to(dtype) for _ in "qkv")
    size = torch.randint(1, 2000, (1, 300), generator=draw).float()
    causal = torch.ones(300, 300, dtype=torch.bool).tril()
    made, exact = attend(q, k, v, None, 0.125, 0.0, size), biased(q, k, v, causal, size, 0.125)
    masked = attend(q, k, v, torch.where(causal, size.log()[:, None, None], float("-inf")), 0.125)
    apart, rival = ((x.double() - exact).abs().max() for x in (made, masked))
    assert apart <= error
    assert apart <= max(1.2 * rival, 2e-6)  # no worse than a mask of the model's dtype


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 999))
def test_merging_equal_keys_leaves_attention_as_it_was(copies, seed):
    """A query over n copies of a key attends as over one key of size n."""
    draw = torch.Generator().manual_seed(seed)
    n, repeats = len(copies), torch.tensor(copies)
    q, k, v = (torch.randn(B, H, n, D, generator=draw) for _ in "qkv")
    everything = torch.ones(B, 1, n, n, dtype=torch.bool)
    full = attend(q, *(x.repeat_interleave(repeats, 2) for x in (k, v)), everything.repeat_interleave(repeats, 3), 0.5)
    torch.testing.assert_close(attend(q, k, v, everything, 0.5, 0.0, repeats.float().expand(B, -1)), full)


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
