"""No op holds as many numbers as there are pairs of tokens."""

import pytest
import torch
from batches import OPS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightvlm_fx.ops import tiles
from lightvlm_fx.ops.bodies import bodies
from lightvlm_fx.ops.segments import PADDING, TEXT

S, K, D, HEADS = 1500, 1000, 8, 4


class Largest(TorchDispatchMode):
    """While active, notes the numbers of the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        fresh = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes() >= x.nbytes]
        self.numbers = max([self.numbers, *(x.numel() for x in fresh)])
        return out


def arguments():
    """Of every op that compares tokens with tokens: two images in one row, and what a cut and a cache choice made of them."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, S, D, generator=draw) for heads in (HEADS, HEADS // 2, HEADS // 2))
    hidden, score, size = torch.randn(1, S, D, generator=draw), torch.rand(1, S, generator=draw), torch.ones(1, S)
    segment = torch.full((1, S), TEXT)
    segment[:, :5], segment[:, 10:700], segment[:, 705:1490] = PADDING, 0, 1
    budget = torch.where(segment == 0, 450, 525)
    index, left, rank = OPS.select_tokens(score, segment, budget, K)
    went = OPS.nearest_survivor(hidden, segment, index, left)
    chosen, entry = OPS.keep_entries(score[:, None].expand(-1, 2, -1), segment, torch.tensor([K]), K, 1, 1, False, False, 0.0)
    return {
        "kv_score_density": (v, segment, False),
        "kv_score_marks": (q, k, segment, 0.5, 1000),
        "kv_score_question": (q, k, segment, 0.5),
        "kv_ask_question": (q, k, segment, 0.5),
        "kv_score_attention": (q, k, segment, None, 0.5),
        "received": (q, k, torch.zeros(1, HEADS, S), segment, None, 0.5, False),
        "kv_spread_density": (q, k, segment, None, 0.5),
        "kv_spread_entropy": (q, k, segment, None, 0.5),
        "kv_went_counted": (k, v, segment, chosen, entry),
        "kv_merge_counted": (k, v, None, None, segment, chosen, went.unsqueeze(1).expand(-1, chosen.shape[1], -1)),
        "merge_tokens": (hidden, size, index, went),
        "kv_merge_pivot": (k, v, segment, chosen, entry),
        "nearest_survivor": (hidden, segment, index, left),
        "combine_merge": (hidden, size, segment, index, left),
        "combine_recover": (hidden, size, score, rank, segment, budget, index, left, 0.1, 5),
        "score_density": (hidden, segment, 0.5),
        "score_peak": (hidden, q, k, segment, 0.5, False, 0.5),
        "score_received": (q, k, segment, None, 0.5),
        "score_text_mean": (q, k, segment, None, 0.5),
        "score_uniform": (segment, budget),
        "take_tokens": (hidden, index, 0, 1),
    }


CALLS = arguments()


@pytest.mark.parametrize("exporting", [False, True], ids=["eager", "exporting"])
@pytest.mark.parametrize("name", CALLS)
def test_the_largest_tensor_grows_with_the_tokens_not_with_their_pairs(name, exporting, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    monkeypatch.setattr(tiles, "MOST", 16)
    monkeypatch.setattr(tiles, "CELLS", 16 * S)
    with torch.no_grad(), Largest() as largest:
        bodies()[getattr(OPS, name).default](*CALLS[name])
    assert 0 < largest.numbers <= 16 * HEADS * S


@pytest.mark.parametrize("counted", [False, True])
def test_attention_makes_no_mask(counted):
    """The fused kernel follows the causal rule by itself, and counts keys as their own dimensions say."""
    q, k = torch.randn(1, 2, S, D), torch.randn(1, 2, S, D)
    with torch.no_grad(), Largest() as largest:
        bodies()[OPS.attention.default](q, k, k, None, 0.5, 0, 0, 0.0, torch.ones(1, S) if counted else None)
    assert largest.numbers <= 4 * q.numel()
