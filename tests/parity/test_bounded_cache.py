"""Tier 4: bounded caches. With room for everything nothing changes; without, every way of dropping agrees."""

from functools import cache

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import InputError
from lightvlm_fx.kv import Kv
from lightvlm_fx.methods.entry_scores.marks import Marks
from lightvlm_fx.methods.moments import Periodic, Step
from lightvlm_fx.presets import PRESETS
from lightvlm_fx.schedule import Cut, Schedule
from lightvlm_fx.support import ALL, answer, difference

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "gemma3")
BATCH = {"text": (9, 6), "images": (1, 1)}
RAGGED = {"text": (7, 9), "images": (2, 1)}
EXACT, ALONE = 1e-5, 1e-4
ROOMY = {
    "streaming-llm": {"capacity": 500}, "h2o": {"capacity": 500}, "scissorhands": {"capacity": 500},
    "snapkv": {"capacity": 1.0, "window": 4},
    "pyramidkv": {"capacity": 1.0, "window": 4}, "vl-cache": {"capacity": 1.0}, "look-m": {"capacity": 1.0, "recent": 4},
    "meda": {"capacity": 1.0, "recent": 4}, "aircache": {"capacity": 1.0}, "sparsevila": {"capacity": 1.0, "keep": 1.0},
    "lightvlm": {"keep": 1.0, "layers": (1, 2), "capacity": 500},
    "lightvlm when=prefill": {"keep": 1.0, "layers": (1, 2), "capacity": 1.0},
    "lightvlm kv_layers=4": {"keep": 1.0, "layers": (1, 2), "capacity": 500, "kv_layers": 4},
}  # fmt: skip
TIGHT = {
    "streaming-llm": {"capacity": 20}, "h2o": {"capacity": 20}, "scissorhands": {"capacity": 20, "window": 8},
    "snapkv": {"capacity": 20, "window": 4}, "pyramidkv": {"capacity": 20, "window": 4}, "vl-cache": {"capacity": 0.4},
    "look-m": {"capacity": 20, "recent": 4}, "meda": {"capacity": 20, "recent": 4}, "aircache": {"capacity": 0.25},
    "sparsevila": {"capacity": 0.25, "keep": 0.9},
    "lightvlm": {"keep": 0.5, "layers": (1, 2), "capacity": 20, "recent": 4},
    "lightvlm when=prefill": {"keep": 0.5, "layers": (1, 2), "capacity": 0.4},
    "lightvlm kv_layers=4": {"keep": 0.5, "layers": (2,), "capacity": 20, "recent": 4, "kv_layers": 4},
}  # fmt: skip
MERGED = {"prompt": "density", "merge": "counted", "visual_share": 0.3}


@cache
def tiny(family):
    return zoo.build(family, layers=4 if family == "gemma3" else 3)


@cache
def unreduced(family):
    return lightvlm.compile(tiny(family).model, "none", backend="eager")


def compiled(family, schedule):
    return unreduced(family).lightvlm.with_schedule(schedule)


def bounded(**options):
    return Schedule(kv=Kv(**{"capacity": 20, "sinks": 2, "recent": 4} | options))


def test_every_preset_with_a_bound_is_here():
    names = {name for name in PRESETS if name != "lightvlm" and Schedule.preset(name).kv} | {"lightvlm"}
    assert {f"lightvlm {option}" for option in ("when=prefill", "kv_layers=4")} | names == set(ROOMY) == set(TIGHT)


def preset(name, options):
    return Schedule.preset(name.split()[0], **options)


@pytest.mark.parametrize("name", ROOMY)
def test_with_room_for_everything_nothing_changes(name):
    inputs, model = tiny("llava").inputs(**BATCH), tiny("llava").model
    assert difference(answer(model, inputs, 12), answer(compiled("llava", preset(name, ROOMY[name])), inputs, 12)) <= EXACT


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("when", ["step", "mask", "periodic", "prefill"])
def test_with_room_for_everything_nothing_changes_in_any_family(family, when):
    inputs, fast = tiny(family).inputs(**BATCH), compiled(family, bounded(capacity=2000, when=when))
    assert difference(answer(tiny(family).model, inputs, 6), answer(fast, inputs, 6)) <= EXACT


@pytest.mark.parametrize("name", TIGHT)
def test_a_row_does_not_depend_on_its_batch(name):
    fast = compiled("llava", preset(name, TIGHT[name]))
    together = answer(fast, tiny("llava").inputs(**BATCH), 30)
    for row in range(2):
        alone = answer(fast, tiny("llava").inputs(text=(BATCH["text"][row],), images=(1,), seed=row), 30)
        assert together.sequences[row, -30:].tolist() == alone.sequences[0, -30:].tolist()
        of_row, logits = torch.stack(together.logits)[:, row], torch.stack(alone.logits)[:, 0]
        assert (of_row - logits).abs().max() <= ALONE * logits.abs().max()


@pytest.mark.parametrize("heads", ["each", "shared"])
@pytest.mark.parametrize(
    "options", [{"score": "age"}, {"score": "attention"}, {"score": Marks(window=8)}, MERGED], ids=["age", "attention", "marks", "merged"]
)
def test_overwriting_equals_masking(options, heads):
    """Pattern S2 (S3 for age) against S4, over an answer that turns the whole cache over."""
    inputs = tiny("llava").inputs(**BATCH)
    masked, written = (answer(compiled("llava", bounded(heads=heads, when=when, **options)), inputs, 40) for when in ("mask", "step"))
    assert difference(masked, written) <= EXACT
    for layer in written.past_key_values.layers:
        assert layer.keys.shape[2] == 20


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("options", [{}, MERGED], ids=["attention", "merged"])
def test_overwriting_equals_masking_with_triples_and_with_windows(family, options):
    """Positions of M-RoPE, and windows of 16 in a cache of 20 (Gemma 3), stay those of the unbounded model."""
    inputs = tiny(family).inputs(**BATCH)
    masked, written = (answer(compiled(family, bounded(when=when, **options)), inputs, 30) for when in ("mask", "step"))
    assert difference(masked, written) <= EXACT
    assert written.past_key_values.get_seq_length() == written.sequences.shape[1] - 1


@pytest.mark.parametrize("merge", ["none", "counted"])
def test_layers_between_two_cuts_share_the_first_ones_choice(merge):
    """What the others hold of it is their own: keys and values, and from then on what their steps give up."""
    cut, inputs = Cut(layer=2, keep=0.9), tiny("llava").inputs(**BATCH)
    held = []
    for layers in (1, 2, 3):
        kv = bounded(layers=layers, prompt="density", merge=merge, heads="shared").kv
        fast = compiled("llava", Schedule(cuts=(cut,), kv=kv))
        held.append([layer.table.position.clone() for layer in answer(fast, inputs, 2).past_key_values.layers])
        assert len({layer.table.position.data_ptr() for layer in answer(fast, inputs, 30).past_key_values.layers}) == 3
    each, two, three = held
    assert not each[1].equal(each[0])
    assert len(set(two[1][0, 0].tolist()) - set(two[0][0, 0].tolist())) <= 1  # the step gave up one entry, each layer its own
    for layer, (found, wanted) in enumerate(zip(two, each, strict=True)):
        assert found.equal(wanted) == (layer != 1)
    assert all(a.equal(b) for a, b in zip(two, three, strict=True))  # never across a cut


def test_dropping_once_equals_masking_once():
    """Pattern S1 against S4 before the first new token leaves: the same entries are read."""
    inputs = tiny("llava").inputs(**BATCH)
    once = answer(compiled("llava", bounded(when="prefill")), inputs, 2)
    masked = answer(compiled("llava", bounded(when="mask")), inputs, 2)
    assert (once.logits[1] - masked.logits[1]).abs().max() > 0  # the mask drops one more for the new token
    kept = [set(layer.table.position[0, 0].tolist()) - {-1} for layer in once.past_key_values.layers]
    left = [set(layer.table.position[0, 0].tolist()) - {-1} for layer in masked.past_key_values.layers]
    for more, less in zip(kept, left, strict=True):
        assert less < more
        assert len(more - less) == 1


@pytest.mark.parametrize("when", [Step(), Periodic(every=8)], ids=["step", "periodic"])
def test_protected_entries_stay_and_memory_does_not_grow(when):
    fast = compiled("llava", bounded(when=when))
    out = answer(fast, tiny("llava").inputs(**BATCH), 50)
    cache = out.past_key_values
    seen, state = cache.get_seq_length(), cache.layers[0].state
    assert seen == out.sequences.shape[1] - 1
    for layer in cache.layers:
        assert layer.keys.shape[2] == 20 + when.period
        for row, start in enumerate(state.start.tolist()):
            for held in layer.table.position[row]:
                assert {start, start + 1} | set(range(seen - 4, seen)) <= set(held.tolist())


@pytest.mark.parametrize("heads", ["each", "shared"])
def test_a_guarded_picture_outlives_any_answer(heads):
    """Its share of the slots holds the whole picture, merged; text turns over in the others."""
    fast = compiled("llava", bounded(heads=heads, **MERGED))
    inputs, visual = tiny("llava").inputs(**BATCH), tiny("llava").visual_tokens
    states = [answer(fast, inputs, n).past_key_values for n in (1, 60)]
    for first, last in zip(states[0].layers, states[1].layers, strict=True):
        for row in range(2):
            held = [set(layer.table.position[row, 0].tolist()) for layer in (first, last)]
            place = (fast.lightvlm.layout.segment[row] >= 0).nonzero().flatten().tolist()
            pictures = [entries & set(place) for entries in held]
            assert pictures[0] == pictures[1]
            assert len(pictures[0]) == 6  # 0.3 of 20
            of_picture = torch.isin(last.table.position[row, 0], torch.tensor(place))
            assert float(last.table.size[row, 0, of_picture].sum()) == visual
            assert held[0] - set(place) != held[1] - set(place)


def test_budgets_that_adapt_sum_to_the_same():
    fast = compiled("llava", Schedule.preset("aircache", capacity=0.25))
    inputs = tiny("llava").inputs(**BATCH)
    answer(fast, inputs, 2)
    counts = fast.lightvlm._decoder.last.stayed["kv_count"]
    visual = tiny("llava").visual_tokens
    assert counts.sum(1).tolist() == [3 * round(0.25 * visual)] * 2
    assert len(set(counts[0].tolist())) > 1
    for layer, per_row in zip(answer(fast, inputs, 1).past_key_values.layers, counts.T.tolist(), strict=True):
        text = [9, 6]
        extra = len(tiny("llava").recipe.span) - visual
        assert (layer.table.position[:, 0] >= 0).sum(1).tolist() == [n + t + extra for n, t in zip(per_row, text, strict=True)]


@pytest.mark.compat
def test_cuts_and_bounds_compose():
    schedule = Schedule(cuts=(Cut(layer=1, keep=0.5, combine="merge", proportional=True),), kv=Kv(capacity=16, sinks=2, recent=4))
    out = answer(compiled("llava", schedule), tiny("llava").inputs(**BATCH), 20)
    layers = out.past_key_values.layers
    assert [layer.keys.shape[2] for layer in layers] == [16] * 3
    assert layers[0].table.size is None
    assert layers[1].table.size.max() > 1


@pytest.mark.compat
def test_a_dialogue_goes_on_over_a_bounded_cache():
    """More new tokens than the cache has room for come in pieces, and equal the same tokens one by one."""
    inputs, fast = tiny("llava").inputs(text=(9,), images=(1,)), compiled("llava", bounded(score="age"))
    more = torch.randint(10, 60, (1, 33), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        first = fast(**inputs, use_cache=True).past_key_values
        together = fast(input_ids=more, past_key_values=first, use_cache=True).logits
        second = fast(**inputs, use_cache=True).past_key_values
        singly = [fast(input_ids=more[:, i : i + 1], past_key_values=second, use_cache=True).logits for i in range(more.shape[1])]
    assert together.shape[1] == 33
    assert first.get_seq_length() == second.get_seq_length()
    for a, b in zip(first.layers, second.layers, strict=True):
        assert set(a.table.position[0, 0].tolist()) == set(b.table.position[0, 0].tolist())
    assert (together[:, 0] - singly[0][:, 0]).abs().max() > 0  # a piece drops all its victims before it begins


def dialogue(model, inputs, questions):
    """Logits of a dialogue: three tokens of an answer, then each question and three tokens more."""
    out = []
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        for question in [*questions, None]:
            out += [model(input_ids=torch.tensor([[20 + i]]), past_key_values=cache, use_cache=True).logits[:, -1] for i in range(3)]
            if question is not None:
                out.append(model(input_ids=question, past_key_values=cache, use_cache=True).logits[:, -1])
    return torch.stack(out), cache


QUESTIONS = tuple(torch.randint(10, 60, (1, n), generator=torch.Generator().manual_seed(n)) for n in (7, 4))


@pytest.mark.parametrize("merge", ["none", "counted"])
def test_nothing_is_lost_between_turns(merge):
    """With room for all visual entries each turn reads what the model itself reads; with less, all of it is still there."""
    inputs, model = tiny("llava").inputs(text=(9,), images=(1,)), tiny("llava").model
    whole, _ = dialogue(model, inputs, QUESTIONS)
    roomy, _ = dialogue(compiled("llava", Schedule.preset("sparsevila", keep=ALL, capacity=1.0, merge=merge)), inputs, QUESTIONS)
    assert (whole - roomy).abs().max() <= EXACT * whole.abs().max()
    fast = compiled("llava", Schedule.preset("sparsevila", keep=ALL, capacity=0.25, merge=merge))
    _, cache = dialogue(fast, inputs, QUESTIONS)
    prompt, visual = inputs["input_ids"].shape[1], tiny("llava").visual_tokens
    with torch.no_grad():
        written = model(**inputs, use_cache=True).past_key_values
    for layer, store, full in zip(cache.layers, cache.layers[0].state.stores, written.layers, strict=True):
        store.bring_in()
        assert store.position[0, 0].tolist() == list(range(cache.get_seq_length()))
        assert (store.keys[:, :, :prompt] - full.keys).abs().max() <= EXACT * full.keys.abs().max()
        assert (store.values[:, :, :prompt] - full.values).abs().max() <= EXACT * full.values.abs().max()
        read = layer.table.position[0, 0]
        assert (read >= 0).sum() == cache.get_seq_length() - visual + round(0.25 * visual)


def test_what_a_question_does_not_ask_for_is_counted():
    """After the prompt and after each question, what is read stands for every token that the picture had."""
    inputs, visual = tiny("llava").inputs(**BATCH), tiny("llava").visual_tokens
    fast = compiled("llava", Schedule.preset("sparsevila", keep=0.7, capacity=0.25))
    questions = [question.repeat(2, 1) for question in QUESTIONS]
    for asked in ([], questions[:1], questions):
        with torch.no_grad():
            cache = fast(**inputs, use_cache=True).past_key_values
            for question in asked:
                fast(input_ids=question, past_key_values=cache, use_cache=True)
        place = fast.lightvlm.layout.segment >= 0
        for layer in cache.layers:
            for row in range(2):
                held = layer.table.position[row, 0]
                of_picture = torch.isin(held, place[row].nonzero().flatten())
                assert of_picture.sum() == round(0.25 * visual)
                assert layer.table.size[row, 0, of_picture].sum() == visual
                assert layer.table.size[row, 0, ~of_picture].unique().tolist() == [1]


def test_each_question_reads_entries_of_its_own():
    inputs, schedule = tiny("llava").inputs(text=(9,), images=(1,)), Schedule.preset("sparsevila", keep=ALL, capacity=0.25)
    read = []
    for question in (torch.full((1, 5), 11), torch.full((1, 5), 50)):
        _, cache = dialogue(compiled("llava", schedule), inputs, [question])
        read.append([set(layer.table.position[0, 0].tolist()) for layer in cache.layers])
    assert read[0] != read[1]


def test_a_share_of_the_prompt_is_each_rows_own():
    """In a batch a short row closes the slots that it would not have alone."""
    fast = compiled("llava", Schedule(kv=Kv(capacity=0.5, sinks=2, recent=4)))
    together = answer(fast, tiny("llava").inputs(**RAGGED), 30)
    for row in range(2):
        inputs = tiny("llava").inputs(text=(RAGGED["text"][row],), images=(RAGGED["images"][row],), seed=row)
        assert together.sequences[row, -30:].tolist() == answer(fast, inputs, 30).sequences[0, -30:].tolist()


@pytest.mark.parametrize("name", ROOMY)
def test_beams_choose_as_the_full_model_where_nothing_is_dropped(name):
    inputs, beams = tiny("llava").inputs(**BATCH), {"num_beams": 3, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    wanted = tiny("llava").model.generate(**inputs, **beams)
    assert compiled("llava", preset(name, ROOMY[name])).generate(**inputs, **beams).equal(wanted)


def test_beams_over_a_full_cache_are_each_rows_own():
    """Entries move with their beam: a row's best answer is what it is alone, long after the cache is full."""
    fast, options = compiled("llava", bounded()), {"max_new_tokens": 25, "min_new_tokens": 25, "num_beams": 3, "do_sample": False}
    together = fast.generate(**tiny("llava").inputs(**BATCH), **options)
    for row in range(2):
        inputs = tiny("llava").inputs(text=(BATCH["text"][row],), images=(1,), seed=row)
        assert together[row, -25:].tolist() == fast.generate(**inputs, **options)[0, -25:].tolist()


def test_sampling_draws_from_what_a_greedy_answer_ranks():
    inputs, fast = tiny("llava").inputs(**BATCH), compiled("llava", bounded())
    greedy = answer(fast, inputs, 25)
    likeliest = fast.generate(**inputs, max_new_tokens=25, min_new_tokens=25, do_sample=True, top_k=1)
    assert likeliest.tolist() == greedy.sequences.tolist()
    torch.manual_seed(0)
    several = fast.generate(**inputs, max_new_tokens=1, min_new_tokens=1, do_sample=True, top_k=5, num_return_sequences=20)[:, -1]
    for drawn, logits in zip(several.view(2, 20), greedy.logits[0], strict=True):
        assert len(set(drawn.tolist())) > 1
        assert set(drawn.tolist()) <= set(logits.topk(5).indices.tolist())


def test_refuses_a_cache_of_another_schedule():
    inputs = tiny("llava").inputs(text=(9,), images=(1,))
    one, other = compiled("llava", bounded()), compiled("llava", bounded(capacity=30))
    with torch.no_grad():
        cache = one(**inputs, use_cache=True).past_key_values
        with pytest.raises(InputError, match="past_key_values was made by another compiled model or schedule"):
            other(input_ids=torch.tensor([[30]]), past_key_values=cache)
