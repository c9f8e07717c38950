"""Scores and the combine of published cuts inside the decoder, on batches of any form; what they compute is in tests/parity."""

import pytest
import torch
from batches import OPS, WIDTH, Batch, batches
from hypothesis import given
from hypothesis import strategies as st
from test_scores import as_mask, attention, causal, kinds

from lightvlm_fx.ops.segments import PADDING, TEXT

pytestmark = pytest.mark.usefixtures("tile")
SCALE = WIDTH**-0.5


def after(batch: Batch, row):
    """Places of the text after the row's last visual token."""
    visual = torch.nonzero(batch.segment[row] >= 0).flatten().tolist()
    return [i for i, kind in enumerate(batch.segment[row].tolist()) if kind == TEXT and i > max(visual, default=-1)]


@given(batches(), st.integers(1, 3), st.integers(0, 3))
def test_unlike_pivots_marks_exactly_the_budget(batch: Batch, image, text):
    score = OPS.score_unlike_pivots(batch.hidden(), batch.qk()[1], batch.segment, batch.budget, image, text)
    assert bool((score[batch.segment < 0] == 0).all())
    for row, number in batch.images():
        own = score[row, batch.segment[row] == number]
        budget = int(batch.table[row, number])
        assert int((own > 0).sum()) == budget
        assert int((own == image + text + 1).sum()) == min(image, budget)


@given(batches(), kinds)
def test_log_sum_exp_is_that_of_the_row_of_each_token(batch: Batch, kind):
    (q, k), allowed = batch.qk(), causal(batch)
    score = OPS.score_log_sum_exp(q, k, batch.segment, as_mask(allowed, kind), SCALE)
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3) * SCALE
    real = batch.segment != PADDING
    expected = logits.masked_fill(~allowed[:, None], float("-inf")).logsumexp(-1).mean(1)
    torch.testing.assert_close(score[real], expected[real])
    assert bool((score[~real] == 0).all())


@given(batches())
def test_raters_are_the_words_of_more_than_average_relevance(batch: Batch):
    noted = OPS.note_raters(batch.segment, batch.hidden())
    for row in range(batch.rows):
        words, visual = after(batch, row), torch.nonzero(batch.segment[row] >= 0).flatten().tolist()
        relevance = (batch.hidden()[row, visual] @ batch.hidden()[row, words].T).softmax(1).mean(0)
        raters = [word for word, x in zip(words, relevance, strict=True) if x > relevance.mean() * (1 + 1e-5)] or words
        assert torch.nonzero(noted[row]).flatten().tolist() == raters


@given(batches(), kinds)
def test_raters_score_is_their_mean_row(batch: Batch, kind):
    (q, k), allowed = batch.qk(), causal(batch)
    noted = OPS.note_raters(batch.segment, batch.hidden())
    score = OPS.score_raters(q, k, batch.segment, as_mask(allowed, kind), SCALE, noted)
    rows = attention(q, k, allowed)
    for row in range(batch.rows):
        torch.testing.assert_close(score[row], rows[row, noted[row] > 0].mean(0))


@given(batches())
def test_weighted_heads_are_of_length_one(batch: Batch):
    """One head alone: mean products of the text after, over the picture of length one."""
    q, k = batch.qk()
    for head in range(q.shape[1]):
        score = OPS.score_weighted_heads(q, k, batch.segment, SCALE, [float(head == i) for i in range(q.shape[1])])
        for row in range(batch.rows):
            visual = batch.segment[row] >= 0
            products = (q[row, head, after(batch, row)] @ k[row, head // 2, visual].T).mean(0)
            torch.testing.assert_close(score[row, visual], torch.nn.functional.normalize(products, dim=0), atol=1e-5, rtol=1e-4)


@given(batches(), kinds, st.integers(1, 5))
def test_visual_heads_are_those_that_pay_the_pictures_most(batch: Batch, kind, heads):
    (q, k), allowed = batch.qk(), causal(batch)
    score = OPS.score_visual_heads(q, k, batch.segment, as_mask(allowed, kind), SCALE, heads, 0.0)
    logits = q @ k.repeat_interleave(2, 1).transpose(2, 3) * SCALE
    each = logits.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
    for row in range(batch.rows):
        visual = batch.segment[row] >= 0
        paid = each[row][:, after(batch, row)].mean(1)
        most = paid[:, visual].sum(1).topk(min(heads, len(paid))).indices
        if visual.any():
            torch.testing.assert_close(score[row], paid[most].mean(0))


@given(batches(), st.sampled_from([0.05, 0.5, 1.0]), st.integers(1, 4))
def test_absorb_halves_centres_with_what_is_most_like_them(batch: Batch, share, group):
    hidden, score = batch.hidden(), batch.score()
    index, left, rank = batch.select(score)
    size = torch.ones(batch.segment.shape)
    merged, grown, went = OPS.combine_absorb(hidden, size, score, rank, batch.segment, batch.budget, index, left, share, group)
    assert merged[left == TEXT].equal(hidden[batch.segment == TEXT])
    assert went.shape == batch.segment.shape
    for row, number in batch.images():
        tokens = torch.nonzero(batch.segment[row] == number).flatten().tolist()
        ranked = sorted(tokens, key=lambda i: (-score[row, i], i))
        budget = int(batch.table[row, number])
        sound = max((p for p in range(budget) if p + max(1, int(share * p)) <= budget), default=0)
        for place, i in enumerate(ranked[:budget]):
            slot = int(torch.nonzero((index[row] == i) & (left[row] == number)))
            dropped = ranked[budget:] if place >= sound else []
            products = hidden[row, dropped] @ hidden[row, i]
            best = products.topk(min(group, len(dropped)))
            theirs = hidden[row, dropped][best.indices]
            expected = (hidden[row, i] + (best.values / hidden.shape[2] ** 0.5).softmax(0) @ theirs) / 2 if dropped else hidden[row, i]
            torch.testing.assert_close(merged[row, slot], expected, atol=1e-5, rtol=1e-5)
            assert grown[row, slot] == 1 + min(group, len(dropped))
