"""Cosines that are never held all at once, against the same in one piece."""

import pytest
import torch
from batches import Batch, batches
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.ops import tiles
from lightvlm_fx.ops.segments import PADDING, TEXT, same_image
from lightvlm_fx.ops.similarity import density, directions, nearest, peaks

rows = st.integers(1, 9)
DEVICES = torch.empty(0), torch.empty(0, device="meta")
CELLS = tiles.CELLS, tiles.ACCELERATOR_CELLS


@pytest.fixture(params=[False, True], ids=["eager", "exporting"])
def _blind(request, monkeypatch):
    """While exporting, no value is read on the host: every tile goes over all images."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: request.param)


def whole_density(x, segment):
    """`density` from one [B, S, S] tensor."""
    near = torch.exp(((x @ x.transpose(1, 2)).float() - 1) / 0.1)
    return (near * (same_image(segment, segment) & ~torch.eye(segment.shape[1], dtype=torch.bool))).sum(-1)


def whole_peaks(score, x, segment, power, base):
    """`peaks` from one [B, S, S] tensor."""
    here = torch.arange(segment.shape[1])
    above = (score[:, None] > score[:, :, None]) | ((score[:, None] == score[:, :, None]) & (here < here[:, None]))
    alike = torch.where(above & same_image(segment, segment), (x @ x.transpose(1, 2)).float(), -1.0)
    return torch.where(segment >= 0, (score + base) ** power * (1 - alike.amax(-1)).clamp(0, 2), 0.0)


def whole_nearest(x, segment, others, kinds):
    """`nearest` from one [B, S, K] tensor."""
    best = torch.where(same_image(segment, kinds), x @ others.transpose(1, 2), -2.0).max(-1)
    return torch.where(best.values > -2.0, best.indices, -1)


@given(batches())
def test_directions_make_cosines_of_centred_hidden_states(batch: Batch):
    hidden, alike = batch.hidden(), batch.alike()
    for b in range(batch.rows):
        visual = batch.segment[b] >= 0
        centred = hidden[b] - hidden[b, visual].sum(0) / visual.sum().clamp_min(1)
        torch.testing.assert_close(alike[b], torch.cosine_similarity(centred[:, None], centred[None], dim=-1), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("_blind")
@given(batches(), rows, st.floats(0, 1), st.sampled_from([0.0, 1.0]))
def test_tiles_give_what_one_piece_gives(batch: Batch, most, power, base):
    """Rows of several images, padding, and numbers of tokens that are no multiple of the tile."""
    segment, score, (index, left, _) = batch.segment, batch.score(), batch.select()
    x = directions(batch.hidden(), segment)
    kept = tiles.pick(x, index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "MOST", most)
        torch.testing.assert_close(density(x, segment), whole_density(x, segment), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(peaks(score, x, segment, power, base), whole_peaks(score, x, segment, power, base), atol=1e-5, rtol=1e-5)
        assert nearest(x, segment, kept, left).equal(whole_nearest(x, segment, kept, left))


@pytest.mark.usefixtures("_blind")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", [0, 1, slice(2)], ids=["two images", "one", "both rows"])
def test_tiles_as_large_as_they_are(dtype, which):
    """Rows of two images and of one, padded, over several tiles of the usual size."""
    draw = torch.Generator().manual_seed(0)
    segment = torch.full((2, 700), TEXT)
    segment[0, 7:300], segment[0, 310:690] = 0, 1
    segment[1, :50], segment[1, 60:690] = PADDING, 0
    segment = segment[which].view(-1, 700)
    x = directions(torch.randn(len(segment), 700, 8, generator=draw).to(dtype), segment)
    score = torch.randint(0, 50, segment.shape, generator=draw).float()
    index = torch.arange(0, 700, 2).expand(len(segment), -1)
    assert x.dtype == dtype
    torch.testing.assert_close(density(x, segment), whole_density(x, segment), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(peaks(score, x, segment, 0.5, 1.0), whole_peaks(score, x, segment, 0.5, 1.0), atol=1e-5, rtol=1e-5)
    kept, left = tiles.pick(x, index), segment.gather(1, index)
    assert nearest(x, segment, kept, left).equal(whole_nearest(x, segment, kept, left))


@given(st.sampled_from(DEVICES), st.integers(0, 40), st.integers(0, 5), st.integers(1, 10**7))
def test_tiles_cover_every_row_once(device, n, first, width):
    covered = [row for start, stop in tiles.tiles(device, n, width, first) for row in range(start, stop)]
    assert covered == list(range(first, n))


@pytest.mark.parametrize("tokens", [1088, 11520, 10**6])
@pytest.mark.parametrize(("device", "cells"), [*zip(DEVICES, CELLS, strict=True)], ids=["cpu", "accelerator"])
def test_a_tile_does_not_grow_with_the_square(device, cells, tokens):
    assert max(stop - start for start, stop in tiles.tiles(device, tokens, tokens)) * tokens <= max(cells, tiles.LEAST * tokens)


def test_an_accelerator_takes_an_ordinary_prompt_in_one_piece():
    assert list(tiles.tiles(DEVICES[1], 1088, 1088)) == [(0, 1088)]


@given(batches(), rows)
def test_a_span_holds_every_token_of_the_rows_images(batch: Batch, n):
    part = batch.segment[:, :n]
    first, last = tiles.span(part, batch.segment)
    there = same_image(part, batch.segment).any((0, 1)).nonzero().flatten().tolist()
    assert all(first <= column < last for column in there)
    assert there or first == last


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_works_at_the_precision_of_the_model(dtype, error):
    hidden = torch.randn(1, 60, 64, generator=torch.Generator().manual_seed(0)) + 30  # a common part that hides the rest
    segment = torch.zeros(1, 60, dtype=torch.int64)
    half, exact = directions(hidden.to(dtype), segment), directions(hidden.to(dtype).float(), segment)
    assert half.dtype == dtype
    torch.testing.assert_close((half @ half.transpose(1, 2)).float(), exact @ exact.transpose(1, 2), atol=error, rtol=0)
