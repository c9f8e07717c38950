import torch
from batches import GROUPS, OPS, Batch, batches
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.ops.segments import PADDING, TEXT


@st.composite
def selections(draw, enough=False, **options):
    """A batch, scores with many ties, and every other argument of `keep_entries`, by name."""
    batch, heads = draw(batches(**options)), draw(st.sampled_from([1, GROUPS]))
    rule = {
        "sinks": draw(st.integers(0, 2)),
        "recent": draw(st.integers(0, 2)),
        "of_visual": draw(st.booleans()),
        "text_first": draw(st.booleans()),
        "visual_share": 0.0,
    }
    count = [draw(st.integers(rule["sinks"] + rule["recent"] if enough else 0, len(row) + 1)) for row in batch.segment]
    score = (batch.randn(len(batch.segment), heads, batch.segment.shape[1], salt=4) * 2).round()
    length = slots(batch.segment, count, rule) + draw(st.integers(0, 2))
    return batch, score, torch.tensor(count), {"length": min(length, batch.segment.shape[1]), **rule}


def slots(segment, count, rule):
    """Slots that the longest row needs."""
    text = (segment == TEXT).sum(1).tolist() if rule["of_visual"] else [0] * len(segment)
    return max(n + t for n, t in zip(count, text, strict=True))


def guarded(segment, rule):
    """Places of one row that always stay, and of all its entries."""
    real = [i for i, kind in enumerate(segment) if kind != PADDING]
    if rule["of_visual"]:
        return {i for i in real if segment[i] == TEXT}, real
    return {*real[: rule["sinks"]], *real[max(0, len(real) - rule["recent"]) :]}, real


def held(at):
    return [i for i in at.tolist() if i >= 0]


@given(selections())
def test_equals_a_loop(case):
    """Protected entries first, then text where it goes first, then by score; ties to the earlier entry."""
    batch, score, count, rule = case
    _, at = OPS.keep_entries(score, batch.segment, count, **rule)
    for b, segment in enumerate(batch.segment.tolist()):
        always, real = guarded(segment, rule)
        most = int(count[b]) + (len(always) if rule["of_visual"] else 0)
        for g in range(score.shape[1]):
            row = score[b, g].tolist()

            def rank(i, always=always, segment=segment, row=row):
                return i not in always, rule["text_first"] and segment[i] != TEXT, -row[i], i

            assert held(at[b, g]) == sorted(sorted(real, key=rank)[:most])


@given(selections())
def test_the_index_rises_and_empty_slots_say_so(case):
    batch, score, count, rule = case
    index, at = OPS.keep_entries(score, batch.segment, count, **rule)
    assert index.shape == at.shape == (*score.shape[:2], rule["length"])
    assert bool((index.diff() > 0).all())
    assert bool(((at == index) | (at == -1)).all())


@given(selections(enough=True))
def test_protected_entries_stay_whatever_they_score(case):
    batch, score, count, rule = case
    segment = batch.segment.tolist()
    for b, row in enumerate(segment):
        score[b][:, list(guarded(row, rule)[0])] = -99.0
    _, at = OPS.keep_entries(score, batch.segment, count, **rule)
    for b, row in enumerate(segment):
        for g in range(score.shape[1]):
            assert guarded(row, rule)[0] <= set(held(at[b, g]))


@given(selections())
def test_beside_all_text_stay_count_visual_entries(case):
    batch, score, count, rule = case
    rule |= {"of_visual": True}
    rule["length"] = min(slots(batch.segment, count.tolist(), rule), batch.segment.shape[1])
    _, at = OPS.keep_entries(score, batch.segment, count, **rule)
    visual = (batch.segment >= 0).sum(1)
    for b in range(batch.rows):
        for g in range(score.shape[1]):
            kinds = batch.segment[b, held(at[b, g])]
            assert int((kinds == TEXT).sum()) == int((batch.segment[b] == TEXT).sum())
            assert int((kinds >= 0).sum()) == min(int(count[b]), int(visual[b]))


@given(selections(rows=(2, 3)))
def test_rows_commute(case):
    batch, score, count, rule = case
    flipped = OPS.keep_entries(score.flip(0), batch.segment.flip(0), count.flip(0), **rule)
    for a, b in zip(OPS.keep_entries(score, batch.segment, count, **rule), flipped, strict=True):
        assert a.equal(b.flip(0))


@given(selections(rows=(2, 3)))
def test_a_row_does_not_depend_on_the_length_of_the_others(case):
    batch, score, count, rule = case
    _, at = OPS.keep_entries(score, batch.segment, count, **rule)
    for b in range(batch.rows):
        pad = int((batch.segment[b] == PADDING).sum())
        segment = batch.segment[b : b + 1, pad:]
        own = rule | {"length": min(rule["length"], segment.shape[1])}
        _, alone = OPS.keep_entries(score[b : b + 1, :, pad:], segment, count[b : b + 1], **own)
        for g in range(score.shape[1]):
            assert [i - pad for i in held(at[b, g])] == held(alone[0, g])


@given(selections(), st.sampled_from([0.25, 0.5, 0.75]))
def test_a_visual_share_is_kept_for_pictures_and_the_rest_for_text(case, share):
    """Each kind's best, sinks and recents of the text first; what pictures do not need, text gets, but not the other way round."""
    batch, score, count, rule = case
    rule |= {"of_visual": False, "text_first": False, "visual_share": share, "length": batch.segment.shape[1]}
    count = count.clamp_max(batch.segment.shape[1])
    _, at = OPS.keep_entries(score, batch.segment, count, **rule)
    for b, segment in enumerate(batch.segment.tolist()):
        always, real = guarded(segment, rule)
        visual, text = ([i for i in real if (segment[i] >= 0) == kind] for kind in (True, False))
        pictures = min(len(visual), int(int(count[b]) * share + 0.5))
        for g in range(score.shape[1]):
            row = score[b, g].tolist()
            best = sorted(visual, key=lambda i, row=row: (-row[i], i))[:pictures]
            best += sorted(text, key=lambda i, row=row, always=always: (-row[i] if i not in always else -99, i))[: int(count[b]) - pictures]
            assert held(at[b, g]) == sorted(best)


def test_heads_choose_for_themselves():
    segment, count = torch.full((1, 4), TEXT), torch.tensor([1])
    score = torch.tensor([[[0.0, 3.0, 1.0, 2.0], [2.0, 1.0, 0.0, 3.0]]])
    assert OPS.keep_entries(score, segment, count, 1, 0, 0, False, False, 0.0)[1].tolist() == [[[1], [3]]]


@given(batches())
def test_take_entries_follows_the_index(batch: Batch):
    """Of keys and of scores, with an index for each head or one for all."""
    score = batch.randn(batch.rows, GROUPS, batch.segment.shape[1])
    for heads in (1, GROUPS):
        index = batch.randn(batch.rows, heads, batch.segment.shape[1], salt=heads).argsort(-1)
        for x in (batch.qk()[1], score):
            taken = OPS.take_entries(x, index)
            for b in range(batch.rows):
                for g in range(GROUPS):
                    assert taken[b, g].equal(x[b, g, index[b, g % heads]])
