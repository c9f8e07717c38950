import pytest
import torch
from batches import OPS, Batch, batches
from hypothesis import given

from lightvlm_fx.ops.segments import PADDING, TEXT

pytestmark = pytest.mark.usefixtures("tile")


def merge(batch: Batch, hidden=None, size=None, score=None):
    """hidden', size', went, and the left segment of a batch's own selection."""
    index, left, _ = batch.select(score)
    hidden = batch.hidden() if hidden is None else hidden
    size = torch.ones(batch.segment.shape) if size is None else size
    return *merged_into(hidden, size, index, batch.segment, left), left


def merged_into(hidden, size, index, segment, left):
    """hidden', size', went: every dropped token with the survivor that it resembles most."""
    went = OPS.nearest_survivor(hidden, segment, index, left)
    return *OPS.merge_tokens(hidden, size, index, went), went


def sizes(batch: Batch):
    return 1.0 + batch.randn(*batch.segment.shape, salt=9).abs()


@given(batches())
def test_equals_a_loop(batch: Batch):
    """Every dropped token joins its picture's survivor with the largest cosine; means weigh by size."""
    hidden, size, (index, left, _) = batch.hidden(), sizes(batch), batch.select()
    merged, grown, went = merged_into(hidden, size, index, batch.segment, left)
    visual = (batch.segment >= 0)[..., None]
    centred = hidden - (hidden * visual).sum(1, keepdim=True) / visual.sum(1, keepdim=True).clamp_min(1)
    for b, number in batch.images():
        survivors = torch.nonzero(left[b] == number).flatten().tolist()
        members = {k: [int(index[b, k])] for k in survivors}
        tokens = set(torch.nonzero(batch.segment[b] == number).flatten().tolist())
        for i in sorted(tokens - set(index[b, survivors].tolist())):
            cosine = torch.cosine_similarity(centred[b, i], centred[b, index[b, survivors]], dim=-1)
            members[survivors[int(cosine.argmax())]].append(i)
        for k, tokens in members.items():
            assert went[b, tokens].tolist() == [k] * len(tokens)
            torch.testing.assert_close(grown[b, k], size[b, tokens].sum())
            mean = (size[b, tokens, None] * hidden[b, tokens]).sum(0) / size[b, tokens].sum()
            torch.testing.assert_close(merged[b, k], mean)


@given(batches(keep_all=True))
def test_is_the_identity_when_all_stay(batch: Batch):
    hidden, size = batch.hidden(), sizes(batch)
    merged, grown, went, _ = merge(batch, hidden, size)
    assert merged.equal(hidden)
    assert grown.equal(size)
    assert went.equal(torch.arange(batch.length).expand_as(went))


@given(batches())
def test_conserves_the_weighted_sum_and_the_size_of_each_picture(batch: Batch):
    hidden, size = batch.hidden(), sizes(batch)
    merged, grown, _, left = merge(batch, hidden, size)
    for b, number in batch.images():
        was, now = batch.segment[b] == number, left[b] == number
        torch.testing.assert_close(grown[b, now].sum(), size[b, was].sum())
        torch.testing.assert_close(
            (grown[b, now, None] * merged[b, now]).sum(0),
            (size[b, was, None] * hidden[b, was]).sum(0),
            atol=1e-5,
            rtol=1e-5,
        )


@given(batches())
def test_leaves_text_as_it_is(batch: Batch):
    hidden = batch.hidden()
    merged, grown, _, left = merge(batch, hidden)
    assert merged[left == TEXT].equal(hidden[batch.segment == TEXT])
    assert bool((grown[left == TEXT] == 1).all())


@given(batches())
def test_duplicates_merge_losslessly(batch: Batch):
    """Where all tokens of a picture are equal, every survivor still is that token."""
    hidden = torch.randn(8, 5, generator=torch.Generator().manual_seed(batch.seed))[batch.segment]
    merged, _, _, left = merge(batch, hidden)
    kept = left >= 0
    torch.testing.assert_close(
        merged[kept], torch.randn(8, 5, generator=torch.Generator().manual_seed(batch.seed))[left[kept]]
    )


@given(batches())
def test_merging_twice_weighs_by_what_each_token_stands_for(batch: Batch):
    """Sizes are carried: two cuts in a row give the mean over original tokens, whichever way they went."""
    hidden = batch.hidden()
    once, size, _, left = merge(batch, hidden)
    budget = batch.budget.new_ones(left.shape)
    length = int(
        (
            (left == TEXT).sum(1)
            + torch.tensor([len([i for b, i in batch.images() if b == row]) for row in range(batch.rows)])
        ).max()
    )
    index, last, _ = OPS.select_tokens(torch.rand(left.shape), left, budget, length)
    twice, total, _ = merged_into(once, size, index, left, last)
    for b, number in batch.images():
        tokens = batch.segment[b] == number
        torch.testing.assert_close(total[b, last[b] == number], tokens.sum()[None].float())
        torch.testing.assert_close(
            twice[b, last[b] == number][0], hidden[b, tokens].mean(0), atol=1e-5, rtol=1e-5
        )


@given(batches())
def test_nothing_crosses_pictures(batch: Batch):
    _, _, went, left = merge(batch)
    for b in range(batch.rows):
        for token, slot in zip(batch.segment[b].tolist(), went[b].tolist(), strict=True):
            if token >= 0:
                assert left[b, slot] == token


@given(batches(rows=(2, 3)))
def test_rows_commute(batch: Batch):
    hidden, size, (index, left, _) = batch.hidden(), sizes(batch), batch.select()
    arguments = (hidden, size, index, batch.segment, left)
    for a, b in zip(merged_into(*arguments), merged_into(*(x.flip(0) for x in arguments)), strict=True):
        torch.testing.assert_close(a, b.flip(0))


@given(batches(rows=(2, 3)))
def test_a_row_does_not_depend_on_the_length_of_the_others(batch: Batch):
    """A longer row makes fillers of dropped tokens; they still join the survivor that they resemble."""
    hidden, size = batch.hidden(), sizes(batch)
    merged, grown, _, left = merge(batch, hidden, size)
    for b in range(batch.rows):
        alone = int((batch.segment[b] == TEXT).sum() + batch.table[b].sum())
        index, own, _ = OPS.select_tokens(
            batch.score()[b : b + 1], batch.segment[b : b + 1], batch.budget[b : b + 1], alone
        )
        one, one_size, _ = merged_into(hidden[b : b + 1], size[b : b + 1], index, batch.segment[b : b + 1], own)
        torch.testing.assert_close(merged[b, left[b] != PADDING], one[0])
        torch.testing.assert_close(grown[b, left[b] != PADDING], one_size[0])


@given(batches())
def test_stays_finite_in_every_slot(batch: Batch):
    merged, grown, _, _ = merge(batch)
    assert bool(torch.isfinite(merged).all())
    assert bool(torch.isfinite(grown).all())
