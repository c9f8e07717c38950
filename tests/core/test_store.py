"""What a layer reads at each turn of a dialogue, beside everything that it ever wrote."""

import pytest
import torch

from lightvlm_fx.methods.entry_merges.counted import Counted
from lightvlm_fx.methods.entry_merges.none import NoMerge
from lightvlm_fx.ops.bounded_attention import attend_bounded
from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.runtime.cache import BufferLayer, SlotTable, Store

GROUPS, HEADS, WIDTH, COPIES = 2, 4, 6, 3
DISTINCT = 4  # visual entries of each row, COPIES times each
ROWS = torch.tensor([
    [PADDING, TEXT, TEXT, *[0] * DISTINCT * COPIES, TEXT, TEXT],
    [TEXT, *[0] * DISTINCT * COPIES, TEXT, TEXT, TEXT, TEXT],
])  # fmt: skip
LENGTH = ROWS.shape[1]


def store_of(counted, size=None, seed=0):
    """A store of two rows, and its layer; the visual entries of a row are copies of few."""
    draw = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(2, GROUPS, LENGTH, WIDTH, generator=draw) for _ in "kv")
    for row, segment in enumerate(ROWS):
        at = (segment == 0).nonzero().flatten()
        for x in (keys, values):
            x[row][:, at] = x[row][:, at[:DISTINCT]].repeat(1, COPIES, 1)
    place = torch.where(ROWS == PADDING, -1, torch.arange(LENGTH)).unsqueeze(1)
    if size is None and counted:
        size = torch.ones(2, 1, LENGTH)
    layer = BufferLayer(None, SlotTable(0, place, size, fixed=LENGTH + 4), keys, values)
    return Store(layer, ROWS, Counted() if counted else NoMerge()), layer


def asked():
    """Scores that ask for each of the distinct entries once."""
    score = torch.zeros(2, 1, LENGTH)
    for row, segment in enumerate(ROWS):
        score[row, 0, (segment == 0).nonzero().flatten()[:DISTINCT]] = 1
    return score


def answer(layer, seed=1):
    """Attention of one new token, which the layer then holds."""
    draw, table = torch.Generator().manual_seed(seed), layer.table
    q, k, v = (torch.randn(2, n, 1, WIDTH, generator=draw) for n in (HEADS, GROUPS, GROUPS))
    slot, query = table.slots(1), torch.tensor([LENGTH])
    table.used += 1
    return attend_bounded(q, k, v, layer.keys, layer.values, table.position, None, table.size, query, torch.tensor([1, 0]), slot,
                          WIDTH**-0.5, 0.0, 0, "age", 0, 0, 1.0, None)  # fmt: skip


@pytest.mark.parametrize("sized", [False, True])
def test_merged_copies_are_read_as_all_of_them(sized):
    """Of entries that are equal, one that counts as all answers exactly as all do; left out, it does not."""
    size = torch.where(ROWS == 0, 2.0, 1.0).unsqueeze(1) if sized else None
    everything = answer(store_of(True, size)[1])
    for counted in (True, False):
        store, layer = store_of(counted, size)
        store.choose(asked(), torch.tensor([DISTINCT, DISTINCT]))
        assert (layer.table.position >= 0).sum(2).flatten().tolist() == [DISTINCT + 4, DISTINCT + 5]
        near = (answer(layer) - everything).abs().max() <= 1e-5
        assert near == counted


def test_counts_what_it_does_not_read():
    store, layer = store_of(True)
    store.choose(asked(), torch.tensor([3, 1]))
    for row, text in enumerate((4, 5)):
        held = layer.table.position[row, 0] >= 0
        assert layer.table.size[row, 0, held].sum() == text + DISTINCT * COPIES
        assert layer.table.size[row, 0, ~held].unique().tolist() == [1]


@pytest.mark.parametrize("counted", [False, True])
def test_keeps_everything_as_it_was(counted):
    """Nothing that was merged for one question is what the next one reads."""
    store, layer = store_of(counted)
    before = [x.clone() for x in (layer.keys[:, :, :LENGTH], layer.values[:, :, :LENGTH], layer.table.position[..., :LENGTH])]
    store.choose(asked(), torch.tensor([2, 2]))
    first = layer.keys[0, 0, :4].clone()  # padding, two of text, one of the picture
    answer(layer)
    store.choose(torch.arange(LENGTH + 1).expand(2, 1, -1).float(), torch.tensor([2, 2]))  # the last copies, of other entries
    assert not layer.keys[0, 0, :4].equal(first)
    store.read_all()
    for x, was in zip((layer.keys, layer.values), before[:2], strict=True):
        assert x[:, :, :LENGTH].equal(was)
    assert layer.table.position[..., : LENGTH + 1].equal(torch.cat([before[2], torch.full((2, 1, 1), LENGTH)], 2))
    if counted:
        assert layer.table.size.unique().tolist() == [1]
