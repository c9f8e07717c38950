import pytest
import torch
from batches import OPS, Batch, batches
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.ops.segments import PADDING


@st.composite
def indices(draw):
    """Rising index [B, K] into S tokens."""
    s, b = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    k = draw(st.integers(1, s))
    rows = [sorted(draw(st.permutations(range(s)))[:k]) for _ in range(b)]
    return torch.tensor(rows), s


@pytest.mark.parametrize("shape", ["BSD", "1SD", "SD", "3BS", "31S", "B1SS", "11SS"])
@given(indices())
def test_takes_each_rows_tokens(shape, case):
    """Like plain indexing of every row by its own index, wherever the rows and the tokens stand."""
    index, s = case
    b = index.shape[0]
    x = torch.randn([{"B": b, "S": s, "D": 5, "1": 1, "3": 3}[c] for c in shape])
    dim = shape.index("S")
    batch = {"BSD": 0, "1SD": 0, "SD": -1, "3BS": 1, "31S": 1, "B1SS": 0, "11SS": 0}[shape]
    out = OPS.take_tokens(x, index, batch, dim)
    rows = x[None] if batch < 0 else x.movedim(batch, 0)
    at = max(batch, 0)
    dim = dim + 1 if batch < 0 else dim
    for row in range(b):
        source = rows[row if rows.shape[0] == b else 0]
        assert out.select(at, row).equal(source.index_select(dim - 1, index[row]))


@given(batches())
def test_compact_index_gives_the_positions_without_gaps(batch: Batch):
    _, left, _ = batch.select()
    index = OPS.compact_index(batch.segment, left)
    for b in range(batch.rows):
        arrived = torch.nonzero(batch.segment[b] != PADDING).flatten()
        survivors = left[b] != PADDING
        assert index[b][survivors].equal(arrived[: int(survivors.sum())])
        assert bool(((index[b] >= 0) & (index[b] < batch.segment.shape[1])).all())


@given(batches(keep_all=True))
def test_compact_index_is_the_identity_when_all_stay(batch: Batch):
    _, left, _ = batch.select()
    index, here = OPS.compact_index(batch.segment, left), torch.arange(batch.length).expand_as(left)
    real = left != PADDING
    assert index[real].equal(here[real])


@given(batches(), st.sampled_from([torch.bool, torch.float32, torch.bfloat16]))
def test_mask_out_closes_fillers_only(batch: Batch, dtype):
    _, left, _ = batch.select()
    k = left.shape[1]
    allowed = (batch.randn(batch.rows, 1, k, k) > 0) | torch.eye(k, dtype=torch.bool)
    mask = allowed if dtype == torch.bool else torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)
    out = OPS.mask_out(mask, left)
    assert out.dtype == dtype
    open_ = out if dtype == torch.bool else out == 0
    assert open_.equal(allowed & (left != PADDING)[:, None, None])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_mask_out_widens_a_mask_that_all_rows_share(dtype):
    left = torch.tensor([[PADDING, 0, -1], [0, 0, -1]])
    mask = torch.ones(1, 1, 3, 3).to(dtype)
    out = OPS.mask_out(mask, left)
    assert out.shape == (2, 1, 3, 3)
    assert bool((out[1] == mask[0]).all())
    assert not bool((out[0, 0, :, 0] == mask[0, 0, :, 0]).any())
