"""Tier 5: published cuts inside the decoder, each against a short, plain, independent reference (see test_methods.py)."""

import math

import pytest
import torch
from references import CASES, FAMILIES, absorbed, last_query, log_sum_exp, run_reference, tiny, unit, unreduced
from torch.nn import functional as F

import lightvlm_fx as lightvlm
from lightvlm_fx.errors import LightVLMError, ScheduleError
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import answer, difference

EXACT = 1e-5  # of the largest logit
cases = pytest.mark.parametrize("case", CASES)
families = pytest.mark.parametrize("family", FAMILIES)
PLAIN = ("llava", "internvl")  # one position a token, which can be renumbered


def best(scores, count):
    """Places of the `count` highest, rising; ties go to the earlier one."""
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def rounded(n, share):
    return max(1, math.floor(n * share + 0.5))


# --- PyramidDrop -----------------------------------------------------------------------------------------


@cases
@families
def test_pyramiddrop_ranks_by_the_layer_after_the_cut(family, case):
    positions = "compact" if family in PLAIN else "keep"
    keep = {1: 0.5, 3: 0.2}
    schedule = Schedule.preset("pyramiddrop", layers=tuple(keep), keep=tuple(keep.values()), positions=positions, ahead=True)

    def rule(seen):
        scores = last_query(seen, over_images=False, layer=seen.layer)
        return [best(s, rounded(n, keep[seen.layer])) for s, n in zip(scores, seen.sizes, strict=True)]

    run_reference(family, case, schedule, dict.fromkeys(keep, rule), EXACT, renumber=tuple(keep) if positions == "compact" else ())


def test_pyramiddrop_renumbers_no_position_triples():
    schedule = Schedule.preset("pyramiddrop", layers=(1, 2, 3))
    with pytest.raises(LightVLMError, match="M-RoPE triples; use positions=keep"):
        run_reference("qwen2_5_vl", "one picture", schedule, {}, EXACT)


# --- DART ------------------------------------------------------------------------------------------------


def dart(seen, budgets):
    """By turns every pivot takes the tokens least like it of what is left, all equally many (the first ones one more)."""
    _, keys, _ = seen.attention()
    norm, x = keys.float().abs().sum((0, 2)), unit(seen.hidden)
    after = [i for i in range(len(x)) if seen.text[i] and i > max(int(span[-1]) for span in seen.spans)]
    by_norm = sorted(after, key=lambda i: (-float(norm[i]), i))[:4]
    out = []
    for span, budget in zip(seen.spans, budgets, strict=True):
        tokens = span.tolist()
        kept = sorted(tokens, key=lambda i: (-float(norm[i]), i))[: min(4, budget)]
        pivots, left = kept + by_norm, [i for i in tokens if i not in kept]
        n, more = divmod(budget - len(kept), len(pivots))
        for turn, pivot in enumerate(pivots):
            took = sorted(left, key=lambda i: (float(x[i] @ x[pivot]), i))[: n + (turn < more)]
            kept, left = kept + took, [i for i in left if i not in took]
        assert len(kept) == budget
        out.append(sorted(tokens.index(i) for i in kept))
    return out


@cases
@families
@pytest.mark.parametrize("keep", [0.5, 3])
def test_dart(family, case, keep):
    schedule = Schedule.preset("dart", layer=2, keep=keep)
    budgets = (lambda n: keep) if isinstance(keep, int) else (lambda n: rounded(n, keep))
    run_reference(family, case, schedule, {2: lambda seen: dart(seen, [budgets(n) for n in seen.sizes])}, EXACT, renumber=())


# --- iLLaVA ----------------------------------------------------------------------------------------------


@cases
@families
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_illava(family, case, share):
    schedule = Schedule.preset("illava", layers=(1, 2, 3), keep=0.85**3, centres=share, group=3)

    def rule(seen):
        kept = [rounded(n, 0.85**seen.layer) for n in seen.sizes]
        return [absorbed(s, h, m, share, 3) for s, h, m in zip(log_sum_exp(seen), seen.images, kept, strict=True)]

    run_reference(family, case, schedule, {1: rule, 2: rule, 3: rule}, EXACT, renumber=())


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_centres_are_that_share_of_the_other_survivors(share):
    budgets = torch.arange(1, 4000)
    found = Schedule.preset("illava", centres=share).cuts[0].combine.number(budgets).tolist()
    for others in range(3000):
        count = max(1, int(share * others + 1e-9))
        assert found[others + count - 1] == count


# --- V2Drop ----------------------------------------------------------------------------------------------


@cases
@families
def test_v2drop(family, case):
    keep = {1: 0.5, 2: 0.25, 3: 1}
    schedule = Schedule.preset("v2drop", layers=tuple(keep))

    def rule(seen):
        change = (seen.hidden - seen.previous).norm(dim=-1)
        counts = [1 if seen.layer == 3 else rounded(n, keep[seen.layer]) for n in seen.sizes]
        return [best(change[span], m) for span, m in zip(seen.spans, counts, strict=True)]

    run_reference(family, case, schedule, dict.fromkeys(keep, rule), EXACT, renumber=())


# --- SparseVLM -------------------------------------------------------------------------------------------


def words_after(seen):
    return [i for i in range(len(seen.hidden)) if seen.text[i] and i > max(int(span[-1]) for span in seen.spans)]


@cases
@families
def test_sparsevlm(family, case):
    """Raters are found once, over all visual tokens; those left by the first cut would find others."""
    positions = "compact" if family in PLAIN else "keep"
    keep = {1: 300 / 576, 2: 200 / 576, 3: 110 / 576}
    schedule = Schedule.preset("sparsevlm", layers=tuple(keep))
    chosen = []

    def rule(seen):
        words = words_after(seen)
        if seen.layer == 1:
            picture, question = seen.embeds[torch.cat(seen.spans)], seen.embeds[words]
            relevance = (picture @ question.T).softmax(1).mean(0)
            chosen[:] = torch.nonzero(relevance > relevance.mean()).flatten().tolist()
            assert 0 < len(chosen) < len(words)
        q, k, _ = seen.attention()
        logits = (q @ k.transpose(1, 2)).float() * q.shape[-1] ** -0.5
        blind = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
        rated = logits.masked_fill(blind, -torch.inf).softmax(-1).mean(0)[[words[i] for i in chosen]].mean(0)
        return [best(rated[span], rounded(n, keep[seen.layer])) for span, n in zip(seen.spans, seen.sizes, strict=True)]

    run_reference(family, case, schedule, dict.fromkeys(keep, rule), EXACT, renumber=tuple(keep) if positions == "compact" else ())


# --- HAWK, METEOR ----------------------------------------------------------------------------------------


@cases
@families
@pytest.mark.parametrize("weighed", [False, True])
def test_hawk(family, case, weighed):
    """Before layer 0, by its own projections."""
    heads = tiny(family).model.config.get_text_config().num_attention_heads
    weights = tuple(0.1 + i / 3 for i in range(heads)) if weighed else ()
    schedule = Schedule.preset("hawk", keep=0.3, weights=weights)

    def rule(seen):
        q, k, _ = seen.attention(layer=0, rope=False)
        picture = torch.cat(seen.spans)
        asked = (q[:, words_after(seen)] @ k[:, picture].transpose(1, 2)).float().mean(1)  # [H, visual]
        scores = (unit(asked) * torch.tensor(weights or [1.0] * heads)[:, None]).sum(0)
        return [best(s, rounded(n, 0.3)) for s, n in zip(scores.split(seen.sizes), seen.sizes, strict=True)]

    run_reference(family, case, schedule, {0: rule}, EXACT, renumber=())


def test_hawk_refuses_weights_of_another_number_of_heads():
    with pytest.raises(LightVLMError, match=r"weights lists 3 heads, but a layer has \d; give one each"):
        run_reference("llava", "one picture", Schedule.preset("hawk", weights=(1.0, 2.0, 3.0)), {}, EXACT)


@cases
@families
@pytest.mark.parametrize("heads", [1, 3, 99])
def test_meteor(family, case, heads):
    schedule = Schedule.preset("meteor", layer=2, keep=0.3, heads=heads)

    def rule(seen):
        q, k, _ = seen.attention()
        logits = (q @ k.transpose(1, 2)).float() * q.shape[-1] ** -0.5
        blind = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
        paid = logits.masked_fill(blind, -torch.inf).softmax(-1)[:, words_after(seen)].mean(1)  # [H, n]
        most = paid[:, torch.cat(seen.spans)].sum(1).topk(min(heads, len(paid))).indices
        return [best(paid[most].mean(0)[span], rounded(n, 0.3)) for span, n in zip(seen.spans, seen.sizes, strict=True)]

    run_reference(family, case, schedule, {2: rule}, EXACT, renumber=())


@cases
@families
@pytest.mark.parametrize("alike", [False, True])
def test_meteor_across_pictures(family, case, alike):
    """The second stage: of each picture what least resembles the tokens of the row's other pictures, all together, or of its own alone."""
    schedule = Schedule.preset("meteor", layer=2, keep=0.5, heads=3, across=0.4)
    assert [cut.keep for cut in schedule.cuts] == [0.4, 0.2]
    only = schedule.model_copy(update={"cuts": schedule.cuts[:1]}) if alike else None

    def rule(seen):
        chosen = []
        for i, image in enumerate(seen.images):
            others = [x for j, x in enumerate(seen.images) if j != i] or [image]
            redundant = F.cosine_similarity(image[:, None].float(), torch.cat(others)[None].float(), dim=-1).sum(1)
            chosen.append(best(-redundant, rounded(seen.sizes[i], 0.4)))
        return chosen

    def later(seen):
        q, k, _ = seen.attention()
        logits = (q @ k.transpose(1, 2)).float() * q.shape[-1] ** -0.5
        blind = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
        paid = logits.masked_fill(blind, -torch.inf).softmax(-1)[:, words_after(seen)].mean(1)
        most = paid[:, torch.cat(seen.spans)].sum(1).topk(3).indices
        return [best(paid[most].mean(0)[span], rounded(n, 0.2)) for span, n in zip(seen.spans, seen.sizes, strict=True)]

    run_reference(family, case, only or schedule, {0: rule} if only else {0: rule, 2: later}, EXACT, renumber=())


def test_meteor_has_all_its_stages_in_one_schedule():
    schedule = Schedule.preset("meteor", tower=0.5, across=0.5)
    assert [(cut.score.name, cut.keep) for cut in schedule.cuts] == [("survived", 0.5), ("unlike-others", 0.25), ("visual-heads", 0.0625)]
    assert schedule.layers(28) == [0, 1, 7]
    fast = unreduced("llava").lightvlm.with_schedule(schedule.model_copy(update={"tower": tuple(
        cut.model_copy(update={"layer": at}) for cut, at in zip(schedule.tower[1:], (0,), strict=True))}))  # fmt: skip
    answer(fast, tiny("llava").inputs(text=(9, 7), images=(1, 2)))
    left = [fast.lightvlm.survivors[f"index.{i}"].shape[1] for i in range(3)]
    assert left == sorted(left, reverse=True)


def test_meteor_refuses_a_count_beside_a_share():
    with pytest.raises(ScheduleError, match=r"meteor: keep must be a share beside across=0.5"):
        Schedule.preset("meteor", keep=8, across=0.5)


@cases
@families
@pytest.mark.parametrize("rate", [0.3, 2.0])
def test_meteor_keeps_as_many_as_the_prompt_asks_for(family, case, rate):
    """Of each picture tokens times what the heads pay it, on average; half of them at most."""
    schedule, counts = Schedule.preset("meteor", layer=2, keep=0.5, heads=3, rate=rate), []

    def rule(seen):
        q, k, _ = seen.attention()
        logits = (q @ k.transpose(1, 2)).float() * q.shape[-1] ** -0.5
        blind = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
        paid = logits.masked_fill(blind, -torch.inf).softmax(-1)[:, words_after(seen)].mean(1)  # [H, n]
        most = paid[:, torch.cat(seen.spans)].sum(1).topk(3).indices
        score = [paid[most].mean(0)[span] for span in seen.spans]
        counts.extend((max(1, int(rate * n * float(s.sum()))), rounded(n, 0.5)) for s, n in zip(score, seen.sizes, strict=True))
        return [best(s, min(count)) for s, count in zip(score, counts[-len(score) :], strict=True)]

    run_reference(family, case, schedule, {2: rule}, EXACT, renumber=())
    assert all(wanted < ceiling for wanted, ceiling in counts) == (rate < 0.5)


@pytest.mark.parametrize(("kv", "options"), [
    (None, {}), ("snapkv", {"capacity": 0.7, "window": 4}), ("h2o", {"capacity": 0.7}), ("aircache", {"capacity": 0.2}),
])  # fmt: skip
def test_what_is_beyond_the_count_is_as_if_it_had_left(kv, options):
    """The same answer, step by step, as with that count as `keep`; whatever cache comes after."""
    bound = Schedule.preset(kv, **options).kv if kv else None
    made = [Schedule.preset("meteor", layer=2, keep=0.5, heads=3, rate=0.3), Schedule.preset("meteor", layer=2, keep=0.5, heads=3)]
    inputs = tiny("llava").inputs(text=(9,), images=(1,))
    fast = unreduced("llava").lightvlm.with_schedule(made[0].model_copy(update={"kv": bound}))
    found = answer(fast, inputs, 8)
    count = int((fast.lightvlm.survivors["segment.0"] >= 0).sum())
    assert 1 < count < fast.lightvlm.schedule.budgets(tiny("llava").visual_tokens)[0]
    cut = made[1].cuts[0].model_copy(update={"keep": count})
    wanted = answer(unreduced("llava").lightvlm.with_schedule(made[1].model_copy(update={"cuts": (cut,), "kv": bound})), inputs, 8)
    assert difference(wanted, found) <= EXACT


# --- artifacts -------------------------------------------------------------------------------------------

EXPORTED = {
    "pyramiddrop": {"layers": (1, 2, 3), "ahead": True}, "dart": {"layer": 2, "keep": 0.5}, "illava": {"layers": (1, 2, 3)},
    "v2drop": {"layers": (1, 2, 3)}, "sparsevlm": {"layers": (1, 2, 3)}, "hawk": {"weights": (0.5, 1.0, 2.0, 4.0)},
    "meteor": {"heads": 2, "keep": 0.5, "rate": 0.3, "across": 0.5}, "feather": {"layers": (1, 2)}, "shortv": {}, "random": {},
    "uniform": {},
    "pyramiddrop, its default": {},
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("name", EXPORTED)
def test_an_artifact_answers_as_the_compiled_model(name, tmp_path):
    model, schedule = tiny("llava"), Schedule.preset(name.split(",")[0], **EXPORTED[name])
    inputs = model.inputs(text=(7, 9), images=(2, 1))
    lightvlm.export(model.model, schedule, tmp_path, inputs=inputs, new_tokens=8)
    fast = unreduced("llava").lightvlm.with_schedule(schedule)
    expected = fast.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)[:, -8:]
    got = lightvlm.load(tmp_path).generate(**{k: v.numpy() for k, v in inputs.items()}, max_new_tokens=8)
    assert got[:, -8:].tolist() == expected.tolist()
