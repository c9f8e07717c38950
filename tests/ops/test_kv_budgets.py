import torch
from batches import OPS, Batch, batches
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.ops.segments import PADDING, TEXT

SCALE = 0.5


@given(st.integers(1, 6), st.integers(0, 2**31), st.sampled_from(["density", "entropy", "strength"]), st.integers(1, 3))
def test_the_sum_is_that_of_uniform_budgets(layers, seed, kind, least):
    draw = torch.Generator().manual_seed(seed)
    statistic = torch.randn(3, layers, 2, generator=draw) * 3
    most = torch.randint(4, 40, (3, layers), generator=draw)
    count = torch.randint(4, 20, (3, 1), generator=draw).expand(3, layers)
    made = OPS.kv_budgets(getattr(OPS, f"kv_shares_{kind}")(statistic), count, most, least)
    assert made.sum(1).tolist() == torch.minimum(count.sum(1), most.sum(1)).clamp_min(least * layers).tolist()
    assert bool((made <= most).all() and (made >= least).all())


def test_strength_is_the_worked_example():
    """AirCache: strengths .2 .4 .3 .1, skewness 2 6 10 6, a tenth of the tokens kept."""
    statistic = torch.tensor([[[0.2, 2.0], [0.4, 6.0], [0.3, 10.0], [0.1, 6.0]]])
    made = OPS.kv_budgets(OPS.kv_shares_strength(statistic), torch.full((1, 4), 1000), torch.full((1, 4), 10_000), 1)
    assert (made - torch.tensor([[567, 1300, 1433, 700]])).abs().max() <= 1


def test_entropy_is_the_worked_example():
    """MEDA: entropies 2 3 4 5 and a fifth of 1000 entries."""
    share = OPS.kv_shares_entropy(torch.tensor([[[2.0], [3.0], [4.0], [5.0]]]))
    made = OPS.kv_budgets(share, torch.full((1, 4), 200), torch.full((1, 4), 1000), 1)
    assert (made - torch.tensor([[26, 70, 190, 515]])).abs().max() <= 1


def direct(batch: Batch):
    """Causal attention [B, H, S, S] of a batch, and which entries each row sees."""
    q, k = batch.qk()
    s = batch.segment.shape[1]
    seen = torch.ones(s, s, dtype=torch.bool).tril() & (batch.segment != PADDING)[:, None]
    logits = (q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3) * SCALE).masked_fill(~seen[:, None], -1e30)
    return logits.softmax(-1), seen


@given(batches())
def test_entropy_is_that_of_the_rows(batch: Batch):
    attended, _ = direct(batch)
    made = OPS.kv_spread_entropy(*batch.qk(), batch.segment, None, SCALE)
    for b in range(batch.rows):
        rows = attended[b][:, batch.segment[b] != PADDING]
        torch.testing.assert_close(made[b], torch.distributions.Categorical(rows).entropy().mean(), atol=1e-4, rtol=1e-4)


@given(batches())
def test_density_counts_what_the_text_after_the_picture_uses(batch: Batch):
    attended, seen = direct(batch)
    made = OPS.kv_spread_density(*batch.qk(), batch.segment, None, SCALE)
    for b in range(batch.rows):
        visual = torch.nonzero(batch.segment[b] >= 0).flatten()
        after = int(visual[-1]) if len(visual) else -1
        rows = [i for i in range(after + 1, batch.segment.shape[1]) if batch.segment[b, i] == TEXT]
        used = sum(((row >= 0.01 * row.max()) & seen[b, i]).sum().item() for i in rows for row in attended[b, :, i])
        torch.testing.assert_close(float(made[b]), used / attended.shape[1] / max(1, sum(int(seen[b, i].sum()) for i in rows)))


@given(batches())
def test_elite_queries_score_visual_entries_only(batch: Batch):
    score, statistic = OPS.kv_score_elite(*batch.qk(), batch.segment, SCALE, 0.9)
    assert bool((score[:, 0][batch.segment < 0] == 0).all())
    torch.testing.assert_close(statistic[:, 0], score.sum((1, 2)))
    assert bool((statistic[:, 0] <= 1 + 1e-5).all())


@given(batches())
def test_with_one_candidate_elite_is_the_last_query(batch: Batch):
    """alpha = 1 leaves the query with the largest weight; its row runs over visual keys and itself."""
    segment = batch.segment.clone()
    segment[:, :-1][segment[:, :-1] == TEXT] = PADDING  # the last token is the only text
    q, k = batch.qk()
    score, _ = OPS.kv_score_elite(q, k, segment, SCALE, 1.0)
    counted = segment >= 0
    counted[:, -1] = True
    row = (q[:, :, -1:] @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(2, 3) * SCALE)[:, :, 0]
    expected = row.masked_fill(~counted[:, None], -1e30).softmax(-1).mean(1) * (segment >= 0)
    torch.testing.assert_close(score[:, 0], expected)


@given(batches())
def test_values_join_the_survivor_of_their_kind_with_the_nearest_key(batch: Batch):
    _, k = batch.qk()
    v = batch.randn(*k.shape, salt=7)
    count = torch.full((batch.rows,), 2)
    index, entry = OPS.keep_entries(batch.randn(*k.shape[:3], salt=8), batch.segment, count, 2, 0, 0, False, False, 0.0)
    _, made = OPS.kv_merge_pivot(k, v, batch.segment, index, entry)
    for b in range(batch.rows):
        for g in range(k.shape[1]):
            kept = [i for i in entry[b, g].tolist() if i >= 0]
            joined = {i: [] for i in kept}
            for i in torch.nonzero(batch.segment[b] != PADDING).flatten().tolist():
                alike = [j for j in kept if (batch.segment[b, i] >= 0) == (batch.segment[b, j] >= 0)]
                if i not in kept and alike:
                    cosine = torch.cosine_similarity(k[b, g, i], k[b, g, alike], dim=-1)
                    joined[alike[int(cosine.argmax())]].append(i)
            for slot, i in enumerate(entry[b, g].tolist()):
                if i >= 0:
                    half = [(v[b, g, j] + v[b, g, i]) / 2 for j in joined[i]]
                    torch.testing.assert_close(made[b, g, slot], torch.stack([v[b, g, i], *half]).mean(0), atol=1e-5, rtol=1e-5)
