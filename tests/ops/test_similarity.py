import pytest
import torch
from batches import OPS, Batch, batches
from hypothesis import given


@given(batches())
def test_is_the_cosine_of_centred_hidden_states(batch: Batch):
    hidden, alike = batch.hidden(), batch.alike()
    for b in range(batch.rows):
        visual = batch.segment[b] >= 0
        centred = hidden[b] - hidden[b, visual].sum(0) / visual.sum().clamp_min(1)
        torch.testing.assert_close(alike[b], torch.cosine_similarity(centred[:, None], centred[None], dim=-1), atol=1e-5, rtol=1e-5)


@given(batches())
def test_some_columns_are_columns_of_all(batch: Batch):
    index = batch.select()[0]
    columns = index[:, None].expand(-1, batch.segment.shape[1], -1)
    torch.testing.assert_close(batch.alike(index), batch.alike().gather(2, columns))


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_works_at_the_precision_of_the_model(dtype, error):
    hidden = torch.randn(1, 60, 64, generator=torch.Generator().manual_seed(0)) + 30  # a common part that hides the rest
    segment = torch.zeros(1, 60, dtype=torch.int64)
    alike = OPS.similarity(hidden.to(dtype), segment, None)
    assert alike.dtype == dtype
    torch.testing.assert_close(alike.float(), OPS.similarity(hidden.to(dtype).float(), segment, None), atol=error, rtol=0)
