"""Rows of a batch do not know of each other: what a compiled model says of one depends on no other."""

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx.schedule import Cut, Schedule

CASES = [
    ("last-query", "prune", "compact", "plain"),
    ("peak", "merge", "keep", "proportional"),
    ("received", "recover", "keep", "plain"),
    ("random", "merge", "compact", "plain"),
]


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[:, -1]


@pytest.fixture(scope="module")
def unreduced(llava):
    """Its captures, which know of no schedule, are made once, long batches first, for every schedule."""
    fast = lightvlm.compile(llava.model, "none", backend="eager")
    for rows in (1, 2):
        logits(fast, llava.inputs(text=(11,) * rows, images=(2,) * rows))
    logits(fast, llava.inputs(text=(7, 11), images=(1, 2)))
    return fast


@pytest.fixture(params=CASES, ids="-".join, scope="module")
def fast(request, unreduced):
    score, combine, positions, keys = request.param
    options = {
        "score": score,
        "combine": combine,
        "positions": positions,
        "proportional": keys == "proportional",
    }
    cuts = [Cut(layer=at, keep=k, **options) for at, k in ((1, 12), (2, 4))]
    return unreduced.lightvlm.with_schedule(Schedule(cuts=cuts))


@pytest.mark.parametrize(
    ("text", "images"), [((7, 41), (1, 0)), ((7, 11), (1, 2))], ids=["beside-text", "beside-two-pictures"]
)
def test_a_row_says_the_same_alone_and_in_a_batch(llava, fast, text, images):
    """Beside a long text nothing can be removed from, and beside a row that is longer and keeps more."""
    batch = llava.inputs(text=text, images=images)
    together = logits(fast, batch)
    for row in range(2):
        alone = llava.inputs(text=text[row : row + 1], images=images[row : row + 1], seed=row)
        torch.testing.assert_close(together[row], logits(fast, alone)[0], atol=1e-4, rtol=1e-4)


def test_rows_commute(llava, fast):
    batch = llava.inputs(text=(7, 11), images=(1, 2))
    swapped = {key: x.flip(0) for key, x in batch.items() if key != "pixel_values"}
    swapped["pixel_values"] = batch["pixel_values"][[1, 2, 0]]  # pictures in the order of the rows
    torch.testing.assert_close(logits(fast, batch).flip(0), logits(fast, swapped), atol=1e-4, rtol=1e-4)


def test_the_schedule_does_change_the_answer(llava, fast):
    """Or the checks above would compare the full model with itself."""
    batch = llava.inputs(text=(7, 11), images=(1, 2))
    assert (logits(fast, batch) - logits(llava.model, batch)).abs().max() > 0.1


def test_a_later_batch_may_lose_more_tokens_than_the_first_one_had(llava):
    """Of one graph: its cuts take as many tokens as the pictures have too many."""
    fast = lightvlm.compile(llava.model, Schedule.preset("fastv", layer=1, keep=4), backend="eager")
    for pictures in (1, 3, 1, 2):
        batch = llava.inputs(text=(9,), images=(pictures,))
        assert logits(fast, batch).isfinite().all()
    prefills = [bucket.tokens_per_layer for bucket in fast.lightvlm.report.buckets]
    assert prefills == [(45, 13, 13, 13)]
