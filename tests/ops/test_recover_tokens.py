import pytest
import torch
from batches import OPS, Batch, batches
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.ops.segments import PADDING, TEXT

pytestmark = pytest.mark.usefixtures("tile")
shares, groups = st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.integers(1, 4)


def recover(batch: Batch, hidden, centres, group, score=None):
    score = batch.score() if score is None else score
    index, left, rank = batch.select(score)
    size = torch.ones(batch.segment.shape)
    return (
        *OPS.combine_recover(
            hidden, size, score, rank, batch.segment, batch.budget, index, left, centres, group
        ),
        index,
        left,
    )


@given(batches(), shares, groups)
def test_equals_a_loop(batch: Batch, centres, group):
    """The last survivors by score are centres, each averaged, by score, with the dropped tokens like it."""
    hidden, score = batch.hidden(), batch.score()
    merged, grown, _, index, left = recover(batch, hidden, centres, group)
    for b, number in batch.images():
        tokens = torch.nonzero(batch.segment[b] == number).flatten().tolist()
        ranked = sorted(tokens, key=lambda i: (-score[b, i], i))
        m = int(batch.table[b, number])
        survivors, dropped = ranked[:m], ranked[m:]
        last = survivors[m - int(m * centres + 0.5) :]
        for i in survivors:
            slot = int(torch.nonzero((index[b] == i) & (left[b] == number)))
            near = sorted(dropped, key=lambda j: -torch.cosine_similarity(hidden[b, i], hidden[b, j], dim=0))[
                :group
            ]
            joined = [j for j in near if score[b, j] > 0] if i in last else []
            weight = torch.stack([score[b, i].clamp_min(1e-12), *(score[b, j] for j in joined)])
            mean = (weight[:, None] * hidden[b, [i, *joined]]).sum(0) / weight.sum()
            torch.testing.assert_close(merged[b, slot], mean, atol=1e-5, rtol=1e-5)
            assert grown[b, slot] == 1 + len(joined)


@given(batches(keep_all=True), shares, groups)
def test_is_the_identity_when_all_stay(batch: Batch, centres, group):
    hidden = batch.hidden()
    merged, grown, went, _, _ = recover(batch, hidden, centres, group)
    assert merged.equal(hidden)
    assert bool((grown == 1).all())
    assert went.equal(torch.arange(batch.length).expand_as(went))


@given(batches(), groups)
def test_is_pruning_without_centres(batch: Batch, group):
    hidden = batch.hidden()
    merged, _, _, index, _ = recover(batch, hidden, 0.0, group)
    assert merged.equal(OPS.take_tokens(hidden, index, 0, 1))


@given(batches(), shares, groups)
def test_nothing_crosses_pictures_and_text_is_left_alone(batch: Batch, centres, group):
    hidden = batch.hidden()
    merged, _, went, _, left = recover(batch, hidden, centres, group)
    assert merged[left == TEXT].equal(hidden[batch.segment == TEXT])
    for b in range(batch.rows):
        for token, slot in zip(batch.segment[b].tolist(), went[b].tolist(), strict=True):
            if token >= 0 and slot >= 0:
                assert left[b, slot] == token


@given(batches(), shares, groups)
def test_stays_finite_where_every_score_is_zero(batch: Batch, centres, group):
    merged, grown, _, _, _ = recover(batch, batch.hidden(), centres, group, torch.zeros(batch.segment.shape))
    assert bool(torch.isfinite(merged).all())
    assert bool((grown == 1).all())


@given(batches(rows=(2, 3)), shares, groups)
def test_a_row_does_not_depend_on_the_others(batch: Batch, centres, group):
    hidden = batch.hidden()
    merged, _, _, _, left = recover(batch, hidden, centres, group)
    for b in range(batch.rows):
        one = Batch(batch.segment[b : b + 1], batch.budget[b : b + 1], batch.table[b : b + 1], 0, batch.seed)
        alone = int((one.segment == TEXT).sum() + one.table.sum())
        one = Batch(one.segment, one.budget, one.table, alone, batch.seed)
        expected, _, _, _, _ = recover(one, hidden[b : b + 1], centres, group, batch.score()[b : b + 1])
        torch.testing.assert_close(merged[b, left[b] != PADDING], expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("budget", "absorbed"), [(10, 2), (4, 2), (2, 2)])
def test_the_share_of_centres_is_rounded(budget, absorbed):
    """One of ten tokens is a centre at 0.1; below five tokens none is, at 0.25 one of two."""
    segment = torch.zeros(1, 12, dtype=torch.int64)
    score = torch.linspace(1.0, 0.1, 12)[None]
    wanted = torch.full_like(segment, budget)
    index, left, rank = OPS.select_tokens(score, segment, wanted, budget)
    share = {10: 0.1, 4: 0.25, 2: 0.25}[budget]
    hidden = torch.randn(1, 12, 5)
    size = torch.ones(1, 12)
    _, grown, _ = OPS.combine_recover(hidden, size, score, rank, segment, wanted, index, left, share, absorbed)
    assert (grown > 1).sum() == 1
    assert grown[0, -1] == 1 + absorbed
