"""Cache entries that are merged and counted: what attention over them answers."""

import pytest
import torch
from batches import GROUPS, OPS, Batch, batches
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.ops.guard_visual import GUARD
from lightvlm_fx.ops.segments import PADDING, TEXT

pytestmark = pytest.mark.usefixtures("tile")
shared = st.booleans()


def chosen(batch: Batch, heads, count=3):
    """Keys, values [B, G, S, d], and `count` entries that stay, by random scores."""
    _, k = batch.qk()
    score = batch.randn(batch.rows, heads, batch.segment.shape[1], salt=8)
    count = torch.full((batch.rows,), count)
    index, entry = OPS.keep_entries(score, batch.segment, count, min(3, batch.segment.shape[1]), 0, 0, False, False, 0.0)
    return k, batch.randn(*k.shape, salt=7), index, entry


def joined(k, v, size, worth, segment, index, entry):
    """Where entries go, then what becomes of those that stay."""
    return OPS.kv_merge_counted(k, v, size, worth, segment, index, OPS.kv_went_counted(k, v, segment, index, entry))


def likeness(values, segment):
    """Cosines [S, S] of one row's values [S, n], centred on its visual ones."""
    x = values - values[segment >= 0].mean(0) if bool((segment >= 0).any()) else values
    return torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(x, dim=-1).T


@given(batches(), shared)
def test_equals_a_loop(batch: Batch, together):
    """A dropped visual entry joins the survivor of its image with the nearest values; text is dropped without a trace."""
    k, v, index, entry = chosen(batch, 1 if together else GROUPS)
    worth = batch.randn(*index.shape[:2], k.shape[2], salt=9)
    keys, values, size, total = joined(k, v, None, worth, batch.segment, index, entry)
    for b, segment in enumerate(batch.segment):
        for g in range(index.shape[1]):
            heads = range(GROUPS) if together else [g]
            alike = likeness(torch.cat([v[b, h] for h in heads], -1), segment)
            slots = {i: slot for slot, i in enumerate(entry[b, g].tolist()) if i >= 0}
            groups = {i: [i] for i in slots}
            for i in range(len(segment)):
                mates = [j for j in slots if segment[j] == segment[i] >= 0]
                if i not in slots and mates:
                    groups[max(mates, key=lambda j, i=i: (float(alike[i, j]), -slots[j]))].append(i)
            for i, members in groups.items():
                assert size[b, g, slots[i]] == len(members)
                torch.testing.assert_close(total[b, g, slots[i]], worth[b, g, members].sum(), atol=1e-5, rtol=1e-5)
                for h in heads:
                    torch.testing.assert_close(keys[b, h, slots[i]], k[b, h, members].mean(0), atol=1e-5, rtol=1e-5)
                    torch.testing.assert_close(values[b, h, slots[i]], v[b, h, members].mean(0), atol=1e-5, rtol=1e-5)


@given(st.integers(0, 999), st.integers(1, 4), shared)
def test_attention_over_merged_copies_is_attention_over_all(seed, copies, together):
    draw = torch.Generator().manual_seed(seed)
    distinct = [torch.randn(1, GROUPS, 5, 6, generator=draw) for _ in "kv"]
    k, v = (x.repeat_interleave(copies, 2) for x in distinct)
    segment = torch.zeros(1, 5 * copies, dtype=torch.int64)
    index = (torch.arange(5) * copies).expand(1, 1 if together else GROUPS, -1)
    keys, values, size, _ = joined(k, v, None, None, segment, index, index)
    assert size.unique().tolist() == [copies]
    q = torch.randn(1, GROUPS, 2, 6, generator=draw)
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    merged = torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=size.log().unsqueeze(2))
    torch.testing.assert_close(whole, merged)


@given(batches(), shared)
def test_sizes_add_up_to_the_tokens_there_were(batch: Batch, together):
    k, v, index, entry = chosen(batch, 1 if together else GROUPS)
    had = batch.randn(*batch.segment.shape, salt=5).abs() + 1
    _, _, size, _ = joined(k, v, had, None, batch.segment, index, entry)
    for b, segment in enumerate(batch.segment):
        for g in range(index.shape[1]):
            kept = [i for i in entry[b, g].tolist() if i >= 0]
            shown = {int(segment[i]) for i in kept} - {TEXT, PADDING}
            there = sum(float(had[b, i]) for i in range(len(segment)) if int(segment[i]) in shown or i in kept)
            live = entry[b, g] >= 0
            torch.testing.assert_close(float(size[b, g, live].sum()), there, atol=1e-4, rtol=1e-4)


@given(batches(rows=(2, 3)), shared)
def test_scores_cover_what_values_hold_row_by_row(batch: Batch, together):
    _, v = batch.qk()
    score = OPS.kv_score_density(v, batch.segment, together)
    assert score.shape == (batch.rows, 1 if together else GROUPS, v.shape[2])
    torch.testing.assert_close(score, OPS.kv_score_density(v.flip(0), batch.segment.flip(0), together).flip(0), atol=1e-4, rtol=1e-4)
    for b, segment in enumerate(batch.segment):
        text = score[b, 0][segment == TEXT]
        assert text.tolist() == sorted(text.tolist())  # the newer the higher


@pytest.mark.parametrize("text", [0.0, 4096.0])
def test_a_guard_outweighs_what_text_may_reach_and_keeps_the_order_of_visual_entries(text):
    segment = torch.tensor([[TEXT, 0, 0, TEXT]])
    made = OPS.guard_visual(torch.tensor([[[text, 0.5, 0.25, text]]]), segment)
    assert made[0, 0].argsort().tolist()[-2:] == [2, 1]
    assert float(made.max()) < float("inf")
    assert 2 * text < GUARD
