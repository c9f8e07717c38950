"""Tier 4: a compiled tiny random model of every family computes what the model itself computes."""

from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.generation.streamers import BaseStreamer

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.compat import cache_argument
from lightvlm_fx.errors import NotSupported, PreconditionError, RefusedModel
from lightvlm_fx.graph.match import before_rope
from lightvlm_fx.model.capture import Call, capture
from lightvlm_fx.releases import release
from lightvlm_fx.runtime import graphs as runtime
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import ALL, answer, difference

FAMILIES = (
    "llava", "llava_next", "llava_onevision", "vipllava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "internvl",
    "smolvlm", "idefics3", "gemma3", "paligemma", "mistral3", "glm4v", "ovis2", "aria",
)  # fmt: skip
CASES = {
    "one row": {"text": (9,), "images": (1,)},
    "batch": {"text": (9, 6), "images": (1, 1)},
    "two pictures": {"text": (9,), "images": (2,)},
    "ragged pictures": {"text": (7, 9), "images": (2, 1)},
    "text only": {"text": (9,), "images": (0,)},
}
RAGGED = CASES["ragged pictures"]
EXACT, ALONE = 1e-5, 1e-4  # bounds on logits, of the largest: the same sums; the same row, padded or not
NEW = 4
DEEP = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3")  # four layers and three cuts; in other families three and two
EVERYTHING = Schedule.preset("lightvlm", keep=ALL, layers=(1, 2))
REDUCED = Schedule.preset("lightvlm", keep=0.3)
SHALLOW = Schedule.preset("lightvlm", keep=0.3, layers=(1, 2))


@cache
def tiny(family):
    return zoo.build(family, layers=4 if family in DEEP else 3)


def reduced(family):
    return REDUCED if family in DEEP else SHALLOW


@cache
def unreduced(family):
    return lightvlm.compile(tiny(family).model, "none", backend="eager")


@cache
def compiled(family, schedule):
    return unreduced(family).lightvlm.with_schedule(schedule)


@cache
def reduced_answer(family, schedule):
    return answer(compiled(family, schedule), tiny(family).inputs(**RAGGED), NEW)


def rows_alone(family):
    """Each row of the ragged batch as a batch of its own."""
    for row, (text, images) in enumerate(zip(RAGGED["text"], RAGGED["images"], strict=True)):
        yield row, tiny(family).inputs(text=(text,), images=(images,), seed=row)


def scheduled_tokens(family, schedule):
    """Tokens of each row [layer][row] that the schedule leaves in the ragged batch."""
    t = tiny(family)
    depth, markers = t.model.config.get_text_config().num_hidden_layers, len(t.recipe.span) - t.visual_tokens
    left = [t.visual_tokens, *schedule.budgets(t.visual_tokens)]
    stage = [sum(layer >= first for first in schedule.layers(depth)) for layer in range(depth)]
    rows = list(zip(RAGGED["text"], RAGGED["images"], strict=True))
    return [[text + images * (markers + left[s]) for text, images in rows] for s in stage]


# --- every family -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_changes_nothing(family, case):
    inputs = tiny(family).inputs(**CASES[case])
    assert difference(answer(tiny(family).model, inputs, NEW), answer(compiled(family, EVERYTHING), inputs, NEW)) <= EXACT


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reduced_row_does_not_depend_on_its_batch(family):
    check_rows_alone(family, reduced(family))


def check_rows_alone(family, schedule):
    together = reduced_answer(family, schedule)
    for row, inputs in rows_alone(family):
        alone = answer(compiled(family, schedule), inputs, NEW)
        assert together.sequences[row, -NEW:].tolist() == alone.sequences[0, -NEW:].tolist()
        of_row, logits = torch.stack(together.logits)[:, row], torch.stack(alone.logits)[:, 0]
        assert (of_row - logits).abs().max() <= ALONE * logits.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_caches_the_scheduled_tokens(family):
    check_counts(family, reduced(family))


def check_counts(family, schedule):
    out = reduced_answer(family, schedule)
    inputs, steps = tiny(family).inputs(**RAGGED), NEW - 1  # the last token is never cached
    expected = scheduled_tokens(family, schedule)
    told = compiled(family, schedule).lightvlm.explain(inputs).tokens_per_layer
    assert out.past_key_values.get_seq_length() == inputs["input_ids"].shape[1] + steps
    for layer, rows, tokens in zip(out.past_key_values.layers, expected, told, strict=True):
        assert layer.table.used - steps == max(rows) == tokens
        assert (layer.table.position >= 0).sum(1).tolist() == [n + steps for n in rows]
        assert layer.keys.shape[2] == layer.values.shape[2] == layer.table.position.shape[1] >= layer.table.used


@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.since(5, 18)) if f == "paligemma" else f for f in FAMILIES])
def test_decoding_equals_a_prefill_of_everything_so_far(family):
    check_decoding(family, Schedule.preset("uniform", keep=0.3, layers=(2,)))  # a score that asks not for the last token


def check_decoding(family, schedule):
    inputs, fast = tiny(family).inputs(**CASES["batch"]), compiled(family, schedule)
    without = fast.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=False,
                            output_logits=True, return_dict_in_generate=True)  # fmt: skip
    assert difference(without, answer(fast, inputs, NEW)) <= EXACT


# --- every way to reduce ----------------------------------------------------------------------------------


def variant(score, combine, positions="keep", **options):
    return Schedule.preset("lightvlm", keep=0.3, layers=(1, 3), score=score, combine=combine, positions=positions, **options)


VARIANTS = {
    "last-query prune compact": variant("last-query", "prune", "compact"),
    "received recover": variant("received", "recover"),
    "text-mean merge compact": variant("text-mean", "merge", "compact"),
    "random merge": variant("random", "merge"),
    "random prune": Schedule.preset("random", keep=0.3, layers=(1, 3)),
    "without rope": variant("peak", "merge", rope=False),
    "at layer 0": Schedule.preset("uniform", keep=0.5, layers=(0, 2), combine="merge"),
}
ELSEWHERE = [("qwen2_5_vl", "received recover"), ("qwen2_5_vl", "without rope"), ("qwen3_vl", "at layer 0")]


@pytest.mark.parametrize(("family", "name"), [*(("llava", name) for name in VARIANTS), *ELSEWHERE])
def test_every_variant_counts_and_keeps_rows_apart(family, name):
    check_counts(family, VARIANTS[name])
    check_rows_alone(family, VARIANTS[name])


def test_refuses_to_renumber_positions_that_are_triples():
    with pytest.raises(PreconditionError, match="positions=compact renumbers one position a token, but this model has M-RoPE"):
        reduced_answer("qwen2_5_vl", VARIANTS["last-query prune compact"])


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_decoding_goes_on_from_the_positions_that_the_policy_gives(positions):
    check_decoding("llava", variant("uniform", "prune", positions))


@pytest.mark.parametrize("family", [
    "llava", "qwen2_5_vl", "glm4v", "gemma3", "paligemma", pytest.param("qwen3_vl", marks=pytest.mark.compat), "fuyu",
])  # fmt: skip
def test_finds_the_query_and_key_before_rope(monkeypatch, family):
    """Plain halves, M-RoPE, partial and interleaved, two bases after q/k norms, after norms, partial halves."""
    captures = []

    def spy(decoder, kwargs, *rest, **options):
        captures.append((capture(decoder, kwargs, *rest, **options), Call.of(kwargs).tensors))
        return captures[-1][0]

    monkeypatch.setattr(runtime, "capture", spy)
    inputs, outputs = tiny(family).inputs(**CASES["batch"]), {}
    answer(lightvlm.compile(tiny(family).model, "none", backend="eager"), inputs, 1)
    attention = tiny(family).model.get_decoder().layers[1].self_attn
    hooks = [m.register_forward_hook(lambda m, args, out, n=n: outputs.update({n: out})) for n, m in attention.named_children()]
    answer(tiny(family).model, inputs, 1)
    for hook in hooks:
        hook.remove()

    program, tensors = captures[0]
    graph = torch.fx.Interpreter(program.graph_module, garbage_collect_values=False)
    with torch.no_grad():
        graph.run(*tensors)
    for which, rotated in zip("qk", program.markers()[1].args[:2], strict=True):
        found = graph.env[before_rope(program, rotated)]
        want = next(outputs[n] for n in (f"{which}_norm", f"{which}_layernorm", f"{which}_proj") if n in outputs)
        if want.shape != found.shape:
            rows, heads, length, width = found.shape
            want = want.reshape(rows, length, heads, width).transpose(1, 2)
        assert torch.allclose(found, want, rtol=0, atol=EXACT * float(want.abs().max()))
        assert not torch.allclose(found, graph.env[rotated], rtol=0, atol=0.1)


# --- generate() in all its ways ---------------------------------------------------------------------------


@pytest.fixture
def pair():
    """The tiny LLaVA, and the same compiled to keep everything."""
    return tiny("llava").model, compiled("llava", EVERYTHING)


@pytest.mark.parametrize("flags", [
    pytest.param({"num_beams": 3}, marks=pytest.mark.compat), {"num_beams": 2, "num_return_sequences": 2},
    {"do_sample": True, "top_k": 20}, {"do_sample": True, "num_return_sequences": 2},
])  # fmt: skip
def test_beams_and_samples_are_the_same(pair, flags):
    answers = []
    for model in pair:
        torch.manual_seed(3)
        inputs = tiny("llava").inputs(**CASES["batch"])
        answers.append(model.generate(**inputs, max_new_tokens=6, **flags).tolist())
    assert answers[0] == answers[1]


def test_beams_move_the_rows_of_every_stage():
    """With a reduction there is no reference but itself: beam 1 of 1 is greedy, and beams of equal rows agree."""
    fast, inputs = compiled("llava", REDUCED), tiny("llava").inputs(**CASES["one row"])
    twice = {key: torch.cat([value, value]) for key, value in inputs.items()}
    one = fast.generate(**inputs, max_new_tokens=6, num_beams=3, do_sample=False)
    two = fast.generate(**twice, max_new_tokens=6, num_beams=3, do_sample=False)
    assert one[0].tolist() == two[0].tolist() == two[1].tolist()


def test_a_streamer_sees_every_token(pair):
    class Collect(BaseStreamer):
        def __init__(self):
            self.got = []

        def put(self, value):
            self.got += value.flatten().tolist()

        def end(self):
            self.got.append("end")

    streamer = Collect()
    out = pair[1].generate(**tiny("llava").inputs(**CASES["one row"]), max_new_tokens=NEW, do_sample=False, streamer=streamer)
    assert streamer.got == [*out[0].tolist(), "end"]


def go_on(model, family, first, more, **picture):
    """A second turn after the cache of a first one."""
    out = answer(model, first, NEW)
    ids = torch.cat([out.sequences, more], 1)
    second = {"input_ids": ids, "attention_mask": torch.ones_like(ids), cache_argument(model.forward): out.past_key_values} | picture
    return answer(model, second | tiny(family).recipe.finish({"input_ids": ids}), NEW)


@pytest.mark.compat
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_dialogue_goes_on(family):
    first, more = tiny(family).inputs(**CASES["one row"]), torch.arange(40, 46)[None]
    turns = [go_on(model, family, first, more) for model in (tiny(family).model, compiled(family, EVERYTHING))]
    assert difference(*turns) <= EXACT


def test_a_later_turn_may_bring_a_picture(pair):
    first, more = tiny("llava").inputs(**CASES["one row"]), torch.tensor([[40, *[zoo.IMAGE] * 36, 41, 42]])
    picture = {"pixel_values": tiny("llava").inputs(**CASES["one row"], seed=5)["pixel_values"]}
    assert difference(*(go_on(model, "llava", first, more, **picture) for model in pair)) <= EXACT


@pytest.mark.since(5, 23)  # before, a later picture attends causally
def test_refuses_a_later_picture_that_attends_in_both_directions():
    first, more = tiny("gemma3").inputs(**CASES["one row"]), torch.tensor([[40, zoo.BOI, *[zoo.IMAGE] * 16, zoo.EOI, 42]])
    picture = {"pixel_values": tiny("gemma3").inputs(**CASES["one row"], seed=5)["pixel_values"]}
    with pytest.raises(NotSupported, match="a later turn brings a picture whose tokens attend to each other in both directions"):
        go_on(compiled("gemma3", EVERYTHING), "gemma3", first, more, **picture)


# --- what other decoders brought to light -----------------------------------------------------------------


def llava_around(text_type, **extra):
    """A tiny LLaVA around another text decoder."""
    vision = zoo.tower(48, 8, "clip_vision_model", projection_dim=32)
    text = zoo.decoder(4, text_type) | extra
    config = AutoConfig.for_model("llava", **zoo.vlm(text, vision, image_token_index=zoo.IMAGE, image_seq_length=36))
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    zoo.redraw(model, seed=0)
    model.generation_config = GenerationConfig(pad_token_id=zoo.PAD, bos_token_id=zoo.BOS, eos_token_id=None)
    return zoo.TinyVLM("llava", model, zoo.FAMILIES["llava"])


@pytest.mark.parametrize(("text_type", "extra"), [
    ("gemma2", {"sliding_window": 16}),  # capped logits, where a padding query sees no key
    ("deepseek_v2", {"kv_lora_rank": 16, "q_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
                     "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
                     "moe_intermediate_size": 32}),  # latent keys in the cache
])  # fmt: skip
def test_keeping_everything_changes_nothing_around_another_decoder(text_type, extra):
    other = llava_around(text_type, **extra)
    fast = lightvlm.compile(other.model, EVERYTHING, backend="eager")
    inputs = other.inputs(**CASES["batch"])
    exact = EXACT if release("transformers") >= (5, 21) else 5e-5  # before, gemma2 itself rounded more
    assert difference(answer(other.model, inputs, NEW), answer(fast, inputs, NEW)) <= exact


@pytest.mark.parametrize("family", ["glm4v_moe", "fuyu", "kimi_k25"])
def test_further_families_count_too(family):
    """Numbers made from the length once for all layers; rows with break tokens and no tower; latent keys and values."""
    check_counts(family, reduced(family))


def test_merges_the_hidden_state_and_no_side_input():
    """DeepStack features have the shape of the hidden state, and before layer 0 both are inputs."""
    schedule = VARIANTS["at layer 0"]
    reduced_answer("qwen3_vl", schedule)
    assert "lightvlm.combine_merge(%inputs_embeds, " in compiled("qwen3_vl", schedule).lightvlm.graph("prefill")


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "max_position_embeddings": 20}


@pytest.mark.parametrize(("text_type", "extra", "error", "message"), [
    ("gpt_oss", EXPERTS, RefusedModel, "GptOssAttention: attention uses 's_aux', which the lowered attention cannot express"),
    ("diffllama", {}, RefusedModel, "DiffLlamaModel: 8 attentions in 4 layers; capture expects one in each"),
    ("llama", DYNAMIC, RefusedModel, r"modeling_rope_utils.py:\d+ branches on values, which a graph cannot follow"),
    ("doge", {}, PreconditionError, "tokens cannot leave a graph that was captured for one sequence length only"),
])  # fmt: skip
def test_refuses_a_decoder_that_a_graph_cannot_express(text_type, extra, error, message):
    other = llava_around(text_type, **extra)
    with pytest.raises(error, match=message):
        answer(lightvlm.compile(other.model, REDUCED, backend="eager"), other.inputs(**CASES["one row"]), 1)


def test_refuses_a_window_that_only_the_config_knows():
    """The decode step would attend to everything where eager transformers masks all but the window."""
    other = llava_around("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=2)
    other.model.get_decoder().config.layer_types = ["sliding_attention"] * 4  # known to the masks, not to the layers
    message = r"layer 0 \(sliding_attention\) attends over a window of 0 tokens, but its config says 16"
    with pytest.raises(RefusedModel, match=message):
        answer(lightvlm.compile(other.model, REDUCED, backend="eager"), other.inputs(**CASES["one row"]), 1)
