"""Every score against its definition on a full attention matrix, or a loop."""

import math

import pytest
import torch
from batches import OPS, WIDTH, Batch, batches
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.ops.similarity import density, directions

SCALE = WIDTH**-0.5
kinds = st.sampled_from(["causal", "boolean", "additive"])


def attention(q, k, allowed):
    """Attention [B, S, S], mean over heads; rows that may see nothing are zero. `allowed` [B, S, S]."""
    logits = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3) * SCALE
    return logits.masked_fill(~allowed[:, None], float("-inf")).softmax(-1).nan_to_num().mean(1)


def causal(batch: Batch):
    s = batch.segment.shape[1]
    return torch.ones(s, s, dtype=torch.bool).tril() & (batch.segment != PADDING)[:, None]


def as_mask(allowed, kind):
    if kind == "causal":
        return None
    mask = allowed[:, None]
    return mask if kind == "boolean" else torch.where(mask, 0.0, torch.finfo(torch.float32).min)


@given(batches())
def test_last_query_is_the_last_row_of_the_softmax(batch: Batch):
    q, k = batch.qk()
    score = OPS.score_last_query(q, k, batch.segment, SCALE, False)
    torch.testing.assert_close(score, attention(q, k, causal(batch))[:, -1])


@given(batches())
def test_last_query_over_visual_keys_sums_to_one_there(batch: Batch):
    q, k = batch.qk()
    score = OPS.score_last_query(q, k, batch.segment, SCALE, True)
    visual = batch.segment >= 0
    expected = attention(q, k, visual[:, None].expand(-1, visual.shape[1], -1))[:, -1]
    some = visual.any(1)
    torch.testing.assert_close(score[some], expected[some])
    torch.testing.assert_close((score * visual).sum(1)[some], torch.ones(int(some.sum())))


@pytest.mark.usefixtures("tile")
@given(batches(), kinds)
def test_received_is_the_column_mean_over_rows_that_see_the_token(batch: Batch, kind):
    (q, k), allowed, valid = batch.qk(), causal(batch), batch.segment != PADDING
    score = OPS.score_received(q, k, batch.segment, as_mask(allowed, kind), SCALE)
    rows = attention(q, k, allowed) * valid[..., None]
    seen_by = (allowed & valid[..., None]).sum(1)
    torch.testing.assert_close(score[valid], (rows.sum(1) / seen_by)[valid])


@pytest.mark.usefixtures("tile")
@given(batches(), kinds)
def test_text_mean_is_the_mean_row_of_the_text_after_the_first_picture(batch: Batch, kind):
    (q, k), allowed = batch.qk(), causal(batch)
    score = OPS.score_text_mean(q, k, batch.segment, as_mask(allowed, kind), SCALE)
    rows = attention(q, k, allowed)
    for b in range(batch.rows):
        visual = torch.nonzero(batch.segment[b] >= 0).flatten()
        first = int(visual[0]) if len(visual) else batch.segment.shape[1]
        text = [i for i in range(first, batch.segment.shape[1]) if batch.segment[b, i] == TEXT]
        expected = rows[b, text].mean(0) if text else torch.zeros(batch.segment.shape[1])
        torch.testing.assert_close(score[b], expected)


@pytest.mark.usefixtures("tile")
@given(batches())
def test_a_mask_replaces_the_causal_rule(batch: Batch):
    """Pictures that attend to themselves in both directions (Gemma 3) are scored so."""
    (q, k), segment = batch.qk(), batch.segment
    allowed = causal(batch) | ((segment[:, :, None] == segment[:, None]) & (segment >= 0)[:, None])
    score = OPS.score_text_mean(q, k, segment, allowed[:, None], SCALE)
    one_way = OPS.score_text_mean(q, k, segment, None, SCALE)
    torch.testing.assert_close(score, one_way)  # text rows see the same either way
    rows = attention(q, k, allowed) * (segment != PADDING)[..., None]
    score, seen_by = OPS.score_received(q, k, segment, allowed[:, None], SCALE), (allowed & (segment != PADDING)[..., None]).sum(1)
    torch.testing.assert_close(score, rows.sum(1) / seen_by.clamp_min(1))


@pytest.mark.usefixtures("tile")
@given(batches(), st.sampled_from([0.0, 0.25, 1.0]))
def test_peak_is_importance_times_distance_to_the_nearest_more_important_token(batch: Batch, power):
    (q, k), hidden, segment = batch.qk(), batch.hidden(), batch.segment
    score = OPS.score_last_query(q, k, segment, SCALE, False)
    peak = OPS.score_peak(hidden, q, k, segment, SCALE, False, power)
    assert bool((peak[segment < 0] == 0).all())
    for b in range(batch.rows):
        visual = torch.nonzero(segment[b] >= 0).flatten().tolist()
        x = {i: hidden[b, i] - hidden[b, visual].mean(0) for i in visual}  # over all pictures of the row
        for i in visual:
            above = [
                j for j in visual if segment[b, j] == segment[b, i] and (-score[b, j], j) < (-score[b, i], i)
            ]
            far = min((1 - float(torch.cosine_similarity(x[i], x[j], dim=0)) for j in above), default=2.0)
            torch.testing.assert_close(float(peak[b, i]), float(score[b, i]) ** power * max(far, 0.0), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("tile")
@given(batches())
def test_density_counts_the_like_tokens_of_the_image(batch: Batch):
    alike, segment = batch.alike(), batch.segment
    made = density(directions(batch.hidden(), segment), segment)
    for b in range(batch.rows):
        for i, kind in enumerate(segment[b].tolist()):
            same = [j for j, other in enumerate(segment[b].tolist()) if other == kind >= 0 and j != i]
            expected = sum((math.exp((float(alike[b, i, j]) - 1) / 0.1) for j in same), 0.0)
            torch.testing.assert_close(float(made[b, i]), expected, atol=1e-4, rtol=1e-4)


@given(batches(), st.sampled_from([1.0, 2.0, 3.0]))
def test_variation_is_the_norm_of_what_a_layer_added(batch: Batch, order):
    before, now = batch.hidden(), batch.randn(*batch.hidden().shape, salt=9).bfloat16()
    score = OPS.score_variation(now, before, batch.segment, order)
    expected = (now.float() - before).abs().pow(order).sum(-1).pow(1 / order)
    torch.testing.assert_close(score, expected)


def test_density_peaks_take_one_token_of_every_group_before_a_second():
    """Three groups of nearly equal tokens and one loner: the four peaks are one of each."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.eye(4, 8).repeat_interleave(torch.tensor([5, 4, 3, 1]), 0)
    hidden = (centres + 0.01 * torch.randn(13, 8, generator=draw))[None]
    segment = torch.zeros(1, 13, dtype=torch.int64)
    peaks = OPS.score_density(hidden, segment, 0.5)[0].topk(4).indices
    assert sorted(centres[peaks].argmax(1).tolist()) == [0, 1, 2, 3]


@given(batches())
def test_random_does_not_depend_on_the_row(batch: Batch):
    score = OPS.score_random(batch.segment, 3, 7)
    assert score.flip(0).equal(OPS.score_random(batch.segment.flip(0), 3, 7))
    assert bool(((score >= 0) & (score < 1)).all())


def test_random_depends_on_the_place_in_the_image_not_in_the_row():
    alone = torch.zeros(1, 20, dtype=torch.int64)
    padded = torch.cat([torch.full((1, 3), -2), torch.full((1, 4), -1), alone], 1)
    assert OPS.score_random(padded, 1, 5)[:, 7:].equal(OPS.score_random(alone, 1, 5))


def test_random_is_uniform_and_differs_by_seed():
    segment = torch.arange(8).repeat_interleave(1024)[None]
    score, other = OPS.score_random(segment, 0, 0), OPS.score_random(segment, 0, 1)
    assert (score == other).float().mean() < 0.01
    assert score.unique().numel() > 0.99 * score.numel()
    for values in (score, other):
        counts = torch.histc(values, 16, 0, 1)
        assert (counts - 512).abs().max() < 5 * 512**0.5  # five standard deviations
    assert abs(torch.corrcoef(torch.cat([score, other]))[0, 1]) < 0.05


@pytest.mark.parametrize("seed", [0, 2**31, 2**40, 2**63 - 1])
def test_random_takes_any_seed(seed):
    assert OPS.score_random(torch.zeros(1, 64, dtype=torch.int64), 0, seed).unique().numel() > 60


@given(batches())
def test_uniform_marks_exactly_the_budget(batch: Batch):
    score = OPS.score_uniform(batch.segment, batch.budget)
    assert bool((score[batch.segment < 0] == 0).all())
    for b, number in batch.images():
        assert int(score[b, batch.segment[b] == number].sum()) == int(batch.table[b, number])


@given(st.integers(1, 60), st.data())
def test_uniform_spreads_evenly(n, data):
    """Steps between chosen tokens differ by one at most, and half a step is left at either end."""
    budget = data.draw(st.integers(1, n))
    segment = torch.zeros(1, n, dtype=torch.int64)
    chosen = torch.nonzero(OPS.score_uniform(segment, torch.full_like(segment, budget))[0]).flatten()
    steps = set(chosen.diff().tolist())
    assert steps <= {n // budget, -(-n // budget)}
    before, after = int(chosen[0]), n - 1 - int(chosen[-1])
    assert abs(before - after) <= 1


@given(batches(rows=(2, 3)), st.sampled_from(["last-query", "received", "text-mean", "density", "peak", "uniform"]))
def test_rows_commute(batch: Batch, name):
    def score(b):
        q, k = (x.flip(0) if b else x for x in batch.qk())
        segment, budget, hidden = (x.flip(0) if b else x for x in (batch.segment, batch.budget, batch.hidden()))
        return {
            "last-query": lambda: OPS.score_last_query(q, k, segment, SCALE, False),
            "received": lambda: OPS.score_received(q, k, segment, None, SCALE),
            "text-mean": lambda: OPS.score_text_mean(q, k, segment, None, SCALE),
            "density": lambda: OPS.score_density(hidden, segment, 0.5),
            "peak": lambda: OPS.score_peak(hidden, q, k, segment, SCALE, False, 0.25),
            "uniform": lambda: OPS.score_uniform(segment, budget),
        }[name]()

    torch.testing.assert_close(score(False), score(True).flip(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_accumulate_in_float32(dtype):
    """Half-precision queries and keys give the scores of their exact values."""
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 4, 300, 16, generator=draw).to(dtype) for _ in range(2))
    segment = torch.full((1, 300), TEXT)
    segment[:, 5:200] = 0
    for score in (
        lambda a, b: OPS.score_last_query(a, b, segment, 0.25, False),
        lambda a, b: OPS.score_received(a, b, segment, None, 0.25),
        lambda a, b: OPS.score_text_mean(a, b, segment, None, 0.25),
    ):
        assert score(q, k).dtype == torch.float32
        torch.testing.assert_close(score(q, k), score(q.float(), k.float()))
