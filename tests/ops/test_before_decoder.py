"""What methods for the projector's output compute: a row alone as in its batch, and by hand where that is short.

Their rules are compared with references in tests/parity/test_methods_before_decoder.py.
"""

import pytest
import torch
from batches import OPS, Batch, batches
from hypothesis import given

from lightvlm_fx.methods import operators
from lightvlm_fx.ops import near_duplicates
from lightvlm_fx.ops.folding import folded
from lightvlm_fx.ops.pick_apart import pick_volume
from lightvlm_fx.ops.segments import PADDING, over_image, unit

SCORES = ["score_salient_then_even", "score_even_then_salient", "score_salient_far_apart", "score_salient_then_distinct",
          "score_determinant", "score_fold"]  # fmt: skip
COMBINES = {"combine_contextual": "score_salient_then_even", "combine_neighbours": "score_even_then_salient", "combine_fold": "score_fold"}


def call(name, given):
    kind, role = operators.every()[name]
    own = [kind.model_fields[key].get_default() for key in operators.options(kind)]
    return getattr(OPS, name)(*(given[argument] for argument in operators.arguments(kind, role)), *own)


def reduced(batch: Batch, score, combine=None, row=None):
    """What is left, [B, K] and [B, K, D], of the batch or of one of its rows without padding."""
    tower = batch.randn(*batch.segment.shape).sigmoid()
    given = {"hidden": batch.hidden(8), "segment": batch.segment, "budget": batch.budget, "tower": tower}
    stay = batch.length
    if row is not None:
        real = batch.segment[row] != PADDING
        given = {name: x[row][real][None] for name, x in given.items()}
        segment = given["segment"][0]
        stay = int((segment == -1).sum()) + int(batch.table[row, : int(segment.max()) + 1].sum())
    given["stay"] = stay
    given["score"] = call(score, given)
    given["index"], given["left"], given["rank"] = OPS.select_tokens(given["score"], given["segment"], given["budget"], stay)
    given["size"] = torch.ones(given["segment"].shape)
    if combine is None:
        return given
    hidden, size, went = call(combine, given)
    return given | {"new": hidden, "grown": size, "went": went}


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("score", SCORES)
@given(batches())
def test_a_row_alone_keeps_what_it_keeps_in_a_batch(score, batch: Batch):
    together = reduced(batch, score)
    for row in range(batch.rows):
        alone, real = reduced(batch, score, row=row), together["left"][row] != PADDING
        first = int((batch.segment[row] == PADDING).sum())
        assert together["index"][row][real].sub(first).tolist() == alone["index"][0].tolist()


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("combine", COMBINES)
@given(batches())
def test_a_row_alone_becomes_what_it_becomes_in_a_batch(combine, batch: Batch):
    """And sizes are those of what went to each."""
    together = reduced(batch, COMBINES[combine], combine)
    for row in range(batch.rows):
        alone, real = reduced(batch, COMBINES[combine], combine, row=row), together["left"][row] != PADDING
        torch.testing.assert_close(together["new"][row][real], alone["new"][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together["grown"][row][real], alone["grown"][0])
        went = torch.bincount(alone["went"][0][alone["went"][0] >= 0], minlength=alone["stay"])
        assert alone["grown"][0].tolist() == went.tolist()


@pytest.mark.parametrize("combine", COMBINES)
@given(batches(keep_all=True))
def test_nothing_changes_when_all_stay(combine, batch: Batch):
    made = reduced(batch, COMBINES[combine], combine)
    assert made["new"].equal(made["hidden"])


FOLDED = {6: [0, 1, 2, 3, 4, 5], 5: [1, 1, 2, 3, 4, 5], 4: [1, 1, 2, 3, 5, 5], 3: [1, 1, 5, 3, 5, 5], 2: [3, 3, 5, 3, 5, 5]}


def test_folds_pairs_until_the_budget_is_left():
    """Places 0 and 1 are most alike, then 4 and 5, then 2 and 5; in a second round 1, 3 and 5 are at places 0, 1 and 2."""
    hidden = torch.tensor([[[1.0, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 0, -1], [-1, 0, 0], [-1, 0.2, 0]]])
    segment = torch.zeros(1, 6, dtype=torch.int64)
    for budget, root in FOLDED.items():
        assert folded(hidden, segment, torch.full_like(segment, budget), 9)[0].tolist() == root
    assert folded(hidden, segment, torch.ones_like(segment), 1)[0].unique().numel() == 3  # one round is half at most


def test_two_pictures_never_fold_into_each_other():
    segment = torch.tensor([[-2, -1, 0, 0, 0, 1, 1, 1, 1, -1]])
    hidden = torch.ones(1, 10, 4)
    budget = torch.tensor([[1, 1, 1, 1, 1, 2, 2, 2, 2, 1]])
    root = folded(hidden, segment, budget, 9)
    assert segment.gather(1, root).equal(segment)
    assert [len(set(root[0, segment[0] == i].tolist())) for i in (0, 1)] == [1, 2]


def test_a_volume_ignores_what_is_spanned_already():
    """The longest first; its double adds nothing, however long."""
    x = torch.tensor([[[3.0, 0, 0], [2.9, 0, 0], [0, 1, 0], [0, 0, 0.5]]])
    segment = torch.zeros(1, 4, dtype=torch.int64)
    assert pick_volume(x, segment, torch.full_like(segment, 4), 4)[0].tolist() == [4, 1, 3, 2]


@pytest.mark.parametrize("read", [True, False], ids=["read", "not read"])
@pytest.mark.parametrize("cells", [near_duplicates.CELLS, 0], ids=["held", "by tiles"])
@pytest.mark.parametrize(("tokens", "budget", "each"), [(100, 30, 8), (100, 1, 8), (700, 200, 11)])
def test_near_duplicates_leave_a_few_at_a_time(tokens, budget, each, cells, read, monkeypatch):
    """Beside a text token and a second picture, of which all stay; `each` is 8, or a 64th of what there is."""
    monkeypatch.setattr(near_duplicates, "CELLS", cells)
    if not read:
        for name, fake in {"readable": lambda x: False, "wanted": lambda which: None}.items():
            monkeypatch.setattr(near_duplicates, name, fake)
    x = unit(torch.randn(1, tokens + 4, 6, generator=torch.Generator().manual_seed(0)))
    segment = torch.tensor([[-1] + [0] * tokens + [1] * 3])
    place = torch.cat([torch.tensor([-1]), torch.arange(tokens), torch.arange(3)])[None]
    budgets = torch.tensor([[1] + [budget] * tokens + [3] * 3])
    left = near_duplicates.without_duplicates(x, segment, place, budgets, 8)[0]
    rest = list(range(1, tokens + 1))
    while len(rest) > budget:
        near = (x[0][rest[::2]] @ x[0][rest[1::2]].T).max(1).values.argsort(descending=True, stable=True).tolist()
        rest = [rest[2 * i] for i in near[min(each, len(rest) - budget) :]] + rest[1::2]
    assert left.nonzero().flatten().tolist() == sorted(rest) + [tokens + 1, tokens + 2, tokens + 3]


def test_sums_over_an_image():
    segment = torch.tensor([[-2, -1, 0, 0, 1, -1]])
    assert over_image(torch.arange(6.0)[None], segment)[0, 2:5].tolist() == [5, 5, 4]


@given(batches())
def test_the_extra_token_is_the_sum_of_what_is_gone(batch: Batch):
    made = reduced(batch, "score_even_then_salient", "combine_neighbours")
    for b, number in batch.images():
        tokens, m = torch.nonzero(batch.segment[b] == number).flatten(), int(batch.table[b, number])
        if not 1 < m < len(tokens):
            continue
        gone = tokens[made["rank"][b, tokens] >= m - 1]
        slot = int((made["index"][b] == gone[made["rank"][b, gone] == m - 1]).nonzero())
        wanted = (made["tower"][b, gone, None] * made["hidden"][b, gone]).sum(0)
        torch.testing.assert_close(made["new"][b, slot], wanted, atol=1e-5, rtol=1e-5)
