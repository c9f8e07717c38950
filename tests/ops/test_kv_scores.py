"""Scores of cache entries against their definition on a full attention matrix, or a loop."""

import pytest
import torch
from batches import GROUPS, HEADS, OPS, WIDTH, Batch, batches
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.ops.attention import attend, attend_and_norm
from lightvlm_fx.ops.segments import PADDING, TEXT

SCALE = WIDTH**-0.5
ROWS = ("attention", "window", "text")
sizes = st.sampled_from([1, 2, 5, 99])


def attention(q, k, allowed):
    """Attention [B, G, H/G, S, S]; rows that may see nothing are zero. `allowed` [B, S, S]."""
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3) * SCALE
    attended = logits.masked_fill(~allowed[:, None], float("-inf")).softmax(-1).nan_to_num()
    return attended.unflatten(1, (k.shape[1], -1))


def causal(batch: Batch):
    s = batch.segment.shape[1]
    real = batch.segment != PADDING
    return torch.ones(s, s, dtype=torch.bool).tril() & real[:, None] & real[..., None]


def rows_score(q, k, segment, mask, rows, window=1, kernel=1):
    """The KV score of that name; `window` and `kernel` are options of one."""
    return getattr(OPS, f"kv_score_{rows}")(q, k, segment, mask, SCALE, *((window, kernel) if rows == "window" else ()))


def chosen(batch: Batch, rows, window):
    """Places of each row whose queries count."""
    for segment in batch.segment.tolist():
        visual = [i for i, kind in enumerate(segment) if kind >= 0]
        first = {"attention": 0, "window": max(0, len(segment) - window), "text": max(visual, default=-1) + 1}[rows]
        yield [i for i, kind in enumerate(segment) if i >= first and kind != PADDING]


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("rows", ROWS)
@given(batches(), sizes, st.booleans())
def test_rows_are_summed_for_each_kv_head(rows, batch: Batch, window, masked):
    """Sums of columns over all rows, the last few, or the text after the last picture; means of a group's heads."""
    (q, k), allowed = batch.qk(), causal(batch)
    if masked:  # pictures that see themselves in both directions
        allowed = allowed | ((batch.segment[:, :, None] == batch.segment[:, None]) & (batch.segment >= 0)[:, None])
    mask = allowed[:, None] if masked else None
    score = rows_score(q, k, batch.segment, mask, rows, window)
    matrix = attention(q, k, allowed).mean(2)
    for b, places in enumerate(chosen(batch, rows, window)):
        torch.testing.assert_close(score[b], matrix[b, :, places].sum(1))


@pytest.mark.usefixtures("tile")
@given(batches(), st.booleans(), st.booleans(), st.booleans())
def test_rows_are_summed_without_another_softmax(batch: Batch, text, masked, sized):
    """From what attention tells of its rows, whose keys may count as several tokens; with `text`, of its keys alone."""
    (q, k), allowed = batch.qk(), causal(batch)
    mask = allowed[:, None] if masked or bool((batch.segment == PADDING).any()) else None
    size = torch.arange(1.0, 1 + batch.segment.numel()).view(batch.segment.shape) if sized else None
    out, norm = attend_and_norm(q, k, k, mask, SCALE, size)
    real = batch.segment != PADDING
    torch.testing.assert_close(out[real], attend(q, k, k, mask, SCALE, 0.0, size)[real])
    sums = OPS.received(q, k, norm, batch.segment, mask, SCALE, text)
    wanted = OPS.kv_score_attention(q, k, batch.segment, mask, SCALE)
    torch.testing.assert_close(sums, torch.where((batch.segment == TEXT)[:, None], wanted, 0.0) if text else wanted, atol=1e-4, rtol=1e-4)


@given(batches(), sizes, st.sampled_from([3, 5]))
def test_a_window_is_averaged_over_neighbouring_keys(batch: Batch, window, kernel):
    """Beyond either end of the row stand zeros, whether there is padding or nothing."""
    q, k = batch.qk()
    plain, pooled = (rows_score(q, k, batch.segment, None, "window", window, n) for n in (1, kernel))
    s, half = batch.segment.shape[1], kernel // 2
    for i in range(s):
        near = plain[..., max(0, i - half) : i + half + 1].sum(-1) / kernel
        torch.testing.assert_close(pooled[..., i], near)


@pytest.mark.usefixtures("tile")
@given(batches(), sizes)
def test_marks_equal_a_loop(batch: Batch, window):
    """Of late rows, the decayed count of heads that gave an entry one over what the row sees, or more."""
    q, k = batch.qk()
    score = OPS.kv_score_marks(q, k, batch.segment, SCALE, window)
    allowed = causal(batch)
    matrix, expected, s = attention(q, k, allowed), torch.zeros_like(score), batch.segment.shape[1]
    for b, places in enumerate(chosen(batch, "window", window)):
        for row in places:
            sees = torch.nonzero(allowed[b, row]).flatten().tolist()
            for entry in sees:
                share = (matrix[b, :, :, row, entry] >= 1 / len(sees)).float().mean(1)
                expected[b, :, entry] += share * (1 - 1 / window) ** (s - 1 - row)
    torch.testing.assert_close(score, expected)


def scores(q, k, segment):
    return [rows_score(q, k, segment, None, rows, 3, 3) for rows in ROWS] + [OPS.kv_score_marks(q, k, segment, SCALE, 3)]


@given(batches(rows=(2, 3)))
def test_a_row_does_not_depend_on_the_others_nor_on_padding(batch: Batch):
    q, k = batch.qk()
    together = scores(q, k, batch.segment)
    for b in range(batch.rows):
        pad = int((batch.segment[b] == PADDING).sum())
        alone = scores(q[b : b + 1, :, pad:], k[b : b + 1, :, pad:], batch.segment[b : b + 1, pad:])
        for name, one, all_rows in zip((*ROWS, "marks"), alone, together, strict=True):
            real = all_rows[b : b + 1, :, pad:]
            torch.testing.assert_close(one, real, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_accumulate_in_float32(dtype):
    """Half-precision queries and keys give the scores of their exact values."""
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, h, 300, WIDTH, generator=draw).to(dtype) for h in (HEADS, GROUPS))
    segment = torch.full((1, 300), TEXT)
    segment[:, 5:200] = 0
    for half, exact in zip(scores(q, k, segment), scores(q.float(), k.float(), segment), strict=True):
        assert half.dtype == torch.float32
        assert half.equal(exact)
