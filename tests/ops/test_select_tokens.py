import torch
from batches import OPS, Batch, batches
from hypothesis import given

from lightvlm_fx.ops.segments import PADDING, TEXT


def reference(score, segment, budget, length):
    """One row, token by token: index, left and rank as lists."""
    tokens = range(len(segment))
    ahead = [
        [j for j in tokens if segment[j] == segment[i] and (-score[j], j) < (-score[i], i)] for i in tokens
    ]
    rank = [len(a) for a in ahead]
    stays = [i for i in tokens if segment[i] == TEXT or (segment[i] >= 0 and rank[i] < budget[i])]
    padding = [i for i in tokens if segment[i] == PADDING]
    dropped = [i for i in tokens if i not in stays and i not in padding]
    index = sorted([*stays, *padding, *dropped][:length])
    return index, [segment[i] if i in stays else PADDING for i in index], rank


@given(batches())
def test_equals_the_reference(batch: Batch):
    score = batch.score()
    index, left, rank = batch.select(score)
    for b in range(batch.rows):
        wanted = reference(
            score[b].tolist(), batch.segment[b].tolist(), batch.budget[b].tolist(), batch.length
        )
        assert (index[b].tolist(), left[b].tolist(), rank[b].tolist()) == wanted


@given(batches())
def test_keeps_exactly_the_budget_of_each_picture(batch: Batch):
    _, left, _ = batch.select()
    for b, number in batch.images():
        assert int((left[b] == number).sum()) == int(batch.table[b, number])


@given(batches())
def test_order_rises(batch: Batch):
    index, _, _ = batch.select()
    assert index.shape == (batch.rows, batch.length)
    assert bool((index.diff(dim=1) > 0).all())


@given(batches())
def test_keeps_all_text(batch: Batch):
    index, left, _ = batch.select()
    for b in range(batch.rows):
        text = torch.nonzero(batch.segment[b] == TEXT).flatten().tolist()
        assert index[b][left[b] == TEXT].tolist() == text


@given(batches())
def test_ties_go_to_the_earlier_token(batch: Batch):
    index, left, _ = batch.select(torch.zeros(batch.segment.shape))
    for b, number in batch.images():
        first = torch.nonzero(batch.segment[b] == number).flatten()[: batch.table[b, number]]
        assert index[b][left[b] == number].tolist() == first.tolist()


@given(batches())
def test_fillers_become_padding(batch: Batch):
    """Rows shorter than the longest are filled: with their own padding first, then with dropped tokens."""
    index, left, rank = batch.select()
    for b in range(batch.rows):
        for place, kind in zip(index[b].tolist(), left[b].tolist(), strict=True):
            was, dropped = int(batch.segment[b, place]), int(rank[b, place]) >= int(batch.budget[b, place])
            assert kind == (PADDING if was >= 0 and dropped else was)
        padded = int((batch.segment[b] == PADDING).sum())
        empty = int((left[b] == PADDING).sum())
        used = int((batch.segment[b, index[b]] == PADDING).sum())
        assert used == min(padded, empty)


@given(batches(keep_all=True))
def test_everything_stays_at_the_full_budget(batch: Batch):
    index, left, _ = batch.select()
    assert index.equal(torch.arange(batch.length).expand_as(index))
    assert left.equal(batch.segment)


@given(batches(rows=(2, 3)))
def test_rows_commute(batch: Batch):
    score = batch.score()
    forward = batch.select(score)
    backward = OPS.select_tokens(score.flip(0), batch.segment.flip(0), batch.budget.flip(0), batch.length)
    for a, b in zip(forward, backward, strict=True):
        assert a.equal(b.flip(0))


def test_a_count_of_nothing_drops_the_whole_picture():
    segment = torch.tensor([[TEXT, 0, 0, TEXT]])
    index, left, _ = OPS.select_tokens(torch.rand(1, 4), segment, torch.zeros_like(segment), 2)
    assert (index.tolist(), left.tolist()) == ([[0, 3]], [[TEXT, TEXT]])
