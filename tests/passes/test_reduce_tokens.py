import pytest
import torch
from drawn import SCORES, WITHOUT_ATTENTION

from lightvlm_fx.errors import PostconditionError, PreconditionError, UnknownName
from lightvlm_fx.graph.edit import crossing, first_of_layer
from lightvlm_fx.graph.match import before_rope, hidden_state
from lightvlm_fx.graph.pretty import text
from lightvlm_fx.graph.program import value
from lightvlm_fx.methods.registry import COMBINES
from lightvlm_fx.methods.token_scores.last_query import LastQuery
from lightvlm_fx.methods.token_scores.visual_heads import VisualHeads
from lightvlm_fx.ops.segments import TEXT
from lightvlm_fx.passes.reduce_tokens import ReduceTokens
from lightvlm_fx.passing.pipeline import Pipeline
from lightvlm_fx.schedule import POSITIONS
from lightvlm_fx.testing import LEAD, one_line, real_inputs, run, tiny_program

S, VISUAL, STAY = 24, 12, 5  # tokens, visual ones after LEAD, and what a cut leaves of them


def rewritten(program, *passes):
    return Pipeline(passes).run(program)[0]


def named_inputs(program, seed=0, **sizes):
    """Inputs of S tokens with VISUAL visual ones, of which cut i leaves STAY, or as many as `visual_budget_<i>` says."""
    draw = torch.Generator().manual_seed(seed)
    segment = torch.full((1, S), TEXT)
    segment[:, LEAD : LEAD + VISUAL] = 0
    given = {
        "position_ids": torch.arange(S)[None],
        "inputs_embeds": torch.randn(1, S, 64, generator=draw),
        "visual_segment": segment,
        "visual_salience": torch.rand(1, S, generator=draw),
        "visual_grid": one_line(segment),
    }
    given |= {
        name: torch.tensor([[sizes.get(name, STAY), 0, 0, 0]]) for name in program.inputs if "budget" in name
    }
    for name in program.inputs:
        if name.startswith("stay_"):
            given[name] = torch.empty(S - VISUAL + sizes.get(name.replace("stay", "visual_budget"), STAY))
    return given


def answers(program, given):
    return run(program, [given[name] for name in program.inputs])


def tap(program, given, *names):
    """Values inside the graph."""
    tapped = program.clone()
    tapped.output_node().args = (tuple(map(tapped.node, names)),)
    tapped.graph_module.recompile()
    with torch.no_grad():
        return tapped.graph_module(*(given[name] for name in tapped.inputs))


# --- what it inserts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"layer": 1},
        {"layer": 2, "score": LastQuery(rope=False, image_softmax=True)},
        {"layer": 1, "score": "peak", "combine": "merge"},
        {"layer": 3, "score": "received", "combine": "recover", "positions": "compact"},
        {"layer": 0, "score": "uniform"},
        {"layer": 2, "combine": "merge", "proportional": True},
        {"layer": 2, "score": LastQuery(ahead=True)},
        {"layer": 2, "score": "raters"},
    ],
    ids=lambda options: "-".join(map(str, options.values())).replace(":", "-"),
)
def test_inserts(prefill, golden, options):
    assert text(rewritten(prefill, ReduceTokens(**options)), "*") == golden


def test_a_later_cut_counts_anew_what_its_survivors_stand_for(prefill, golden):
    """Sizes of the latest cut, layer by layer; the masks stay plain."""
    cuts = [ReduceTokens(layer=at, combine="merge", proportional=True) for at in (1, 3)]
    after = rewritten(prefill, *cuts)
    lines = text(after).splitlines()
    assert "\n".join(x for x in lines if "lightvlm.attention" in x) == golden


def test_inserts_masks_for_fillers(masked_programs, golden):
    assert (
        text(rewritten(masked_programs["prefill"], ReduceTokens(layer=1, combine="merge")), "*")
        == golden
    )


def test_inserts_a_lower_budget_where_the_score_adapts(masked_programs, golden):
    assert text(rewritten(masked_programs["prefill"], ReduceTokens(layer=2, score=VisualHeads(rate=0.5))), "*") == golden


def test_a_second_cut_reads_what_the_first_left(prefill, golden):
    cuts = (
        ReduceTokens(layer=1, score="random"),
        ReduceTokens(layer=2, combine="merge"),
    )
    assert text(rewritten(prefill, *cuts), "*") == golden


# --- what it computes ------------------------------------------------------------------------------------


def test_variation_reads_the_hidden_states_around_the_layer_before_the_cut(prefill):
    after = rewritten(prefill, ReduceTokens(layer=2, score="variation"))
    score = next(node for node in after.graph.nodes if node.name == "score_0")
    length = value(prefill.sequence()).shape[1]
    for node, layer in zip(score.args[:2], (2, 1), strict=True):
        assert node.name == hidden_state(prefill, crossing(prefill, first_of_layer(prefill, layer)), length).name



@pytest.mark.parametrize(("family", "rope"), [("llava", True), ("llava", False), ("kimi_k25", True)])  # the last writes keys in place
@pytest.mark.parametrize("layer", [0, 2])
def test_a_score_may_read_the_layer_after_the_cut(family, layer, rope):
    """Of what arrives: the attention marker's queries and keys in the graph without the cut, or those before RoPE."""
    program = tiny_program(family=family)
    after = rewritten(program, ReduceTokens(layer=layer, score=LastQuery(ahead=True, rope=rope)))
    given = dict(zip(after.inputs, real_inputs(after), strict=True))
    wanted = [x if rope else before_rope(program, x) for x in program.markers()[layer].args[:2]]
    found = tap(after, given, *(x.name for x in after.node("score_0").args[:2]))
    for one, expected in zip(found, tap(program, given, *(x.name for x in wanted)), strict=True):
        assert one.equal(expected)


def test_what_a_score_notes_is_computed_once(prefill):
    """Of the whole prompt, at the tokens that are left."""
    after = rewritten(prefill, ReduceTokens(layer=1, score="raters"), ReduceTokens(layer=3, score="raters"))
    given = named_inputs(after, visual_budget_0=8, visual_budget_1=5)
    assert sum("note_raters" in str(node.target) for node in after.graph.nodes) == 1
    whole, index, left = tap(after, given, "noted_0", "index_0", after.node("score_1").args[5].name)
    assert whole.gather(1, index).equal(left)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("combine", COMBINES.names)
@pytest.mark.parametrize("score", SCORES)
def test_is_the_identity_when_all_stay(prefill, score, combine, positions):
    after = rewritten(
        prefill, ReduceTokens(layer=2, score=score, combine=combine, positions=positions)
    )
    given = named_inputs(after, visual_budget_0=VISUAL)
    expected, got = answers(prefill, given), answers(after, given)
    for name, tensor in expected.items():
        assert tensor.equal(got[name])
    assert got["index.0"].tolist() == [list(range(S))]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("score", ["random", "uniform"])
def test_pruning_before_layer_0_is_the_model_on_the_survivors(prefill, score, positions):
    """With the positions they had, or renumbered from 0."""
    after = rewritten(prefill, ReduceTokens(layer=0, score=score, positions=positions))
    given = named_inputs(after)
    got = answers(after, given)
    index = got["index.0"][0]
    there = index if positions == "keep" else torch.arange(len(index))
    expected = answers(
        prefill, {"inputs_embeds": given["inputs_embeds"][:, index], "position_ids": there[None]}
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor)


@pytest.mark.parametrize("combine", COMBINES.names)
@pytest.mark.parametrize("score", SCORES)
def test_layers_before_the_cut_are_untouched_and_those_after_it_are_short(prefill, score, combine):
    removed = VISUAL - STAY
    after = rewritten(prefill, ReduceTokens(layer=2, score=score, combine=combine))
    given = named_inputs(after)
    full, got = answers(prefill, given), answers(after, given)
    for kind in ("keys", "values"):
        for layer in range(4):
            if layer < 2:
                assert got[f"{kind}.{layer}"].equal(full[f"{kind}.{layer}"])
            else:
                assert got[f"{kind}.{layer}"].shape[2] == S - removed
    assert got["hidden"].shape[1] == S - removed
    assert int((got["segment.0"] == 0).sum()) == STAY
    assert bool((got["index.0"].diff() > 0).all())


def test_the_last_query_chooses_what_the_last_row_attends_to(prefill):
    """The survivors are those with the largest attention of the last token in the layer before."""
    after = rewritten(prefill, ReduceTokens(layer=2))
    given = named_inputs(after)
    marker = prefill.markers()[1]
    q, k = tap(prefill, given, *(n.name for n in marker.args[:2]))
    row = (
        (q[:, :, -1:] @ k.repeat_interleave(2, 1).transpose(2, 3) * marker.args[4]).softmax(-1).mean(1)[0, 0]
    )
    best = LEAD + row[LEAD : LEAD + VISUAL].topk(STAY).indices
    kept = [i for i in answers(after, given)["index.0"][0].tolist() if LEAD <= i < LEAD + VISUAL]
    assert kept == sorted(best.tolist())


def test_scores_without_rope_do_not_depend_on_positions(prefill):
    """Layer 0 sees no positions in its inputs, so only rotated queries and keys can tell them apart."""
    for rope in (True, False):
        after = rewritten(prefill, ReduceTokens(layer=1, score=LastQuery(rope=rope)))
        given = named_inputs(after)
        moved = given | {"position_ids": torch.arange(S)[None] * 3 + 5}
        assert tap(after, given, "score_0")[0].equal(tap(after, moved, "score_0")[0]) == (not rope)


def test_two_cuts_add_up(prefill):
    cuts = (
        ReduceTokens(layer=1, combine="merge"),
        ReduceTokens(layer=3, combine="merge"),
    )
    after = rewritten(prefill, *cuts)
    got = answers(after, named_inputs(after, visual_budget_0=8, visual_budget_1=5))
    assert [got[f"keys.{layer}"].shape[2] for layer in range(4)] == [S, S - 4, S - 4, S - 7]
    visual = got["segment.1"] == 0
    assert float(got["size.1"][visual].sum()) == VISUAL
    assert int(got["went.1"].max()) == S - 8


def one_picture_of_equal_tokens(program):
    """Visual tokens first, all equal in content and position: merging them can lose nothing."""
    given = named_inputs(program)
    segment = given["visual_segment"].fill_(TEXT)
    segment[:, :VISUAL] = 0
    given["inputs_embeds"][:, :VISUAL] = given["inputs_embeds"][:, :1].clone()
    given["position_ids"] = torch.cat(
        [torch.zeros(1, VISUAL), torch.arange(1, S - VISUAL + 1)[None]], 1
    ).long()
    return given


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("score", ["last-query", "uniform", "peak"])
def test_duplicates_merge_losslessly_where_keys_count_as_what_they_stand_for(prefill, score, layer):
    options = {"layer": layer, "score": score, "combine": "merge"}
    counted = rewritten(prefill, ReduceTokens(**options, proportional=True))
    given = one_picture_of_equal_tokens(counted)
    full, got = answers(prefill, given)["hidden"], answers(counted, given)["hidden"]
    torch.testing.assert_close(got[:, STAY:], full[:, VISUAL:], atol=1e-4, rtol=1e-4)
    plain = answers(rewritten(prefill, ReduceTokens(**options)), given)["hidden"]
    assert (plain[:, STAY:] - full[:, VISUAL:]).abs().max() > 1e-2


def test_survivors_are_chosen_by_content(prefill):
    after = rewritten(prefill, ReduceTokens(layer=1, score="peak"))
    chosen = {
        tuple(answers(after, named_inputs(after, seed=seed))["index.0"][0].tolist()) for seed in range(5)
    }
    assert len(chosen) > 1


# --- what it refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [4, -1])
def test_refuses_a_layer_beyond_the_decoder(prefill, layer):
    with pytest.raises(
        PreconditionError, match=rf"reduce-tokens\{{layer={layer}\}}: layer must be 0 to 3, got {layer}"
    ):
        rewritten(prefill, ReduceTokens(layer=layer))


@pytest.mark.parametrize("score", [s for s in SCORES if s not in WITHOUT_ATTENTION])
def test_refuses_attention_before_layer_0(prefill, score):
    with pytest.raises(
        PreconditionError, match=f"score '{score}' reads the layer before, got layer 0"
    ):
        rewritten(prefill, ReduceTokens(layer=0, score=score))


@pytest.mark.parametrize("layer", [1, 2])
def test_refuses_a_layer_that_is_not_after_the_cut_before(prefill, layer):
    with pytest.raises(PreconditionError, match="layer must be after the cut before layer 2"):
        rewritten(prefill, ReduceTokens(layer=2), ReduceTokens(layer=layer))


def test_refuses_a_score_that_adapts_where_nothing_can_be_hidden(prefill):
    with pytest.raises(PreconditionError, match="score 'visual-heads' leaves fewer tokens than its budget, which only masks can hide"):
        rewritten(prefill, ReduceTokens(layer=2, score=VisualHeads(rate=0.5)))


def test_refuses_to_renumber_position_triples(prefill):
    triples = prefill.clone()
    triples.with_facts(positions_rank=3)
    with pytest.raises(PreconditionError, match="this model has M-RoPE triples; use positions=keep"):
        rewritten(triples, ReduceTokens(positions="compact"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "peek"}, "no score named 'peek'; did you mean 'peak'"),
        ({"combine": "merg"}, "no combine named 'merg'; did you mean 'merge'"),
        ({"positions": "kept"}, "no position policy named 'kept'; did you mean 'keep'"),
    ],
)
def test_refuses_unknown_names_with_a_guess(prefill, options, message):
    with pytest.raises(UnknownName, match=message):
        rewritten(prefill, ReduceTokens(**options))


def test_refuses_queries_before_rope_where_there_are_none(prefill):
    """A graph whose keys come straight from an input cannot be scored without RoPE."""
    odd = prefill.clone()
    marker = odd.markers()[0]
    with odd.graph.inserting_before(marker):
        fresh = odd.graph.call_function(torch.ops.aten.mul.Tensor, (odd.node("unsqueeze_1"), 1.0))
        fresh.meta["val"] = odd.node("unsqueeze_1").meta["val"]
    marker.args = (marker.args[0], fresh, *marker.args[2:])
    with pytest.raises(
        PreconditionError, match=r"no value of shape \[1, 1, .*, 16\] before rotary embedding leads to %"
    ):
        rewritten(odd, ReduceTokens(layer=1, score=LastQuery(rope=False)))


def test_refuses_a_result_whose_layers_are_still_long(prefill):
    after = rewritten(prefill, ReduceTokens(layer=2))
    with pytest.raises(PostconditionError, match=r"reduce-tokens: keys.1 should hold .* tokens, holds s\d+"):
        ReduceTokens(layer=1).ensures(after)
