"""Tier 5: cuts inside the vision tower, against a short, plain, independent tower that runs one picture, block by block."""

import copy
import math
from functools import cache

import pytest
import references
import torch
from references import CASES, absorbed, log_sum_exp, run_reference
from torch.nn import functional as F

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.bench.memory import FRAME, video
from lightvlm_fx.compat import own_configs
from lightvlm_fx.errors import NotSupported, ScheduleError
from lightvlm_fx.exporters.tower_cuts import Cutting, tiled
from lightvlm_fx.methods.registry import COMBINES, TOKEN_SCORES
from lightvlm_fx.model.locate import vision_tower
from lightvlm_fx.schedule import Cut, Schedule, TowerCut
from lightvlm_fx.shares import share_of
from lightvlm_fx.support import answer, difference

EXACT = 1e-5  # of the largest logit
PACKED = ("qwen2_vl", "qwen2_5_vl")
FAMILIES = ("llava", "paligemma", *PACKED)  # the reference knows no DeepStack
BLOCKS = 4


def blocks_of(tower):
    return tower.blocks if hasattr(tower, "blocks") else tower.encoder.layers


@cache
def deep(family):
    """The tiny model with a tower of four blocks, of which LLaVA uses three; those from the second on attend to whole pictures."""
    tiny = zoo.build(family, layers=4)
    tower, draw = vision_tower(tiny.model), torch.Generator().manual_seed(1)
    blocks = blocks_of(tower)
    while len(blocks) < BLOCKS:
        blocks.append(copy.deepcopy(blocks[1], {id(tower.config): tower.config}))
        for weight in blocks[-1].parameters():
            weight.data += 0.02 * torch.randn(weight.shape, generator=draw)
    config = tower.config
    setattr(config, "depth" if hasattr(config, "depth") else "num_hidden_layers", BLOCKS)
    if hasattr(tower, "fullatt_block_indexes"):
        tower.fullatt_block_indexes = config.fullatt_block_indexes = [1, 2, 3]
    return tiny


@cache
def unreduced(family):
    return lightvlm.compile(deep(family).model, "none", backend="eager")


@pytest.fixture(autouse=True)
def deep_towers(monkeypatch):
    monkeypatch.setattr(references, "tiny", deep)
    monkeypatch.setattr(references, "unreduced", unreduced)


# --- the reference ---------------------------------------------------------------------------------------


def attend(block, x, turned, sizes):
    """What a block's attention adds to x [n, D]; its logits, probabilities and keys [H, n, .]; keys count as `sizes` [n]."""
    n = len(x)
    if turned is None:
        own = block.self_attn
        x = block.layer_norm1(x)
        q, k, v = (getattr(own, f"{name}_proj")(x).view(n, own.num_heads, -1).transpose(0, 1) for name in "qkv")
        out = own.out_proj
    else:
        own, out = block.attn, block.attn.proj
        q, k, v = own.qkv(block.norm1(x)).view(n, 3, own.num_heads, -1).permute(1, 2, 0, 3)
        cos, sin = turned

        def half(y):
            a, b = y.chunk(2, -1)
            return torch.cat([-b, a], -1)

        q, k = (y * cos + half(y) * sin for y in (q, k))
    logits = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    seen = logits, logits.softmax(-1), k
    return out((logits + sizes.log()).softmax(-1).matmul(v).transpose(0, 1).reshape(n, -1)), seen


@torch.no_grad()
def tower_reference(model, pixels, grid, rules, keep, proportional):
    """Of one picture the places of the visual tokens that are left, and their features.

    `rules`, by block, say which groups of tokens become one, each in the place of its last and their mean, or beside them what they
    become [m, W]; `keep`, how many are left of all.
    """
    tower, got = vision_tower(model), {}
    blocks, first = blocks_of(tower), min(rules)
    hook = blocks[first].register_forward_pre_hook(lambda m, a, k: got.update(hidden=a[0], **k), with_kwargs=True)
    own = model.model.get_image_features(pixels, *[grid] * (grid is not None))
    hook.remove()
    hidden, turned = got["hidden"], got.get("position_embeddings")
    merge = model.config.vision_config.spatial_merge_size if grid is not None else 1
    group = merge**2
    tokens = sum(map(len, own.pooler_output))
    hidden = hidden[0] if hidden.ndim == 3 else hidden
    summary = len(hidden) - tokens * group
    places, sizes = list(range(tokens)), torch.ones(len(hidden))
    layer = getattr(model.config, "vision_feature_layer", None)
    for number in range(first, len(blocks) if layer is None else len(blocks) + 1 + layer):
        block = blocks[number]
        more, (logits, seen, k) = attend(block, hidden, turned, sizes if proportional else torch.ones_like(sizes))
        hidden = hidden + more
        if number in rules:
            view = {"hidden": hidden, "k": k.transpose(0, 1), "seen": seen, "logits": logits, "summary": summary, "group": group}
            joined = rules[number](view, math.floor(tokens * keep[number] + 0.5))
            joined, new = joined if isinstance(joined, tuple) else (joined, None)
            units, weights = (x[summary:].unflatten(0, (-1, group)) for x in (hidden, sizes))
            weigh = [weights[who][..., None] / weights[who].sum(0)[..., None] for who in joined]
            kept = torch.cat([(units[who] * w).sum(0) for who, w in zip(joined, weigh, strict=True)])
            kept = kept if new is None else new.reshape(kept.shape)
            sizes = torch.cat([sizes[:summary], *(weights[who].sum(0) for who in joined)])
            hidden = torch.cat([hidden[:summary], kept])
            places = [places[who[-1]] for who in joined]
            if turned is not None:
                turned = [x.unflatten(0, (-1, group))[[who[-1] for who in joined]].flatten(0, 1) for x in turned]
        norm, mlp = (block.norm2, block.mlp) if hasattr(block, "norm2") else (block.layer_norm2, block.mlp)
        hidden = hidden + mlp(norm(hidden))
    return finished(model, tower, hidden, summary, places, grid)


def finished(model, tower, hidden, summary, places, grid):
    """Features of the tokens that are left, in the order of the prompt, with their places there."""
    if grid is None:
        left = hidden[summary:] if hasattr(model.config, "vision_feature_layer") else tower.post_layernorm(hidden)
        return places, model.model.multi_modal_projector(left[None])[0]
    features = tower.merger(hidden)
    if hasattr(tower, "window_size"):
        index, _ = tower.get_window_index(grid) if hasattr(tower, "get_window_index") else window_index(tower, grid)
        there = torch.as_tensor(index)[places]
        order = there.argsort()
        return there[order].tolist(), features[order]
    return places, features


def window_index(tower, grid):
    from transformers.vision_utils import get_vision_window_index

    return get_vision_window_index(grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)


def check(family, case, schedule, rules, proportional=False, later=None):
    keep = {number: cut.keep for number, cut in schedule.in_tower(3 if family == "llava" else BLOCKS).items()}

    def ruled(seen):
        model, pixels, grid = seen.model, seen.inputs.get("pixel_values"), seen.inputs.get("image_grid_thw")
        lengths = [1] * len(seen.spans) if grid is None else grid.prod(1).tolist()
        out = []
        for i, part in enumerate(pixels.split(lengths)):
            at = None if grid is None else grid[i : i + 1]
            out.append(tower_reference(model, part, at, dict(zip(keep, rules, strict=True)), keep, proportional))
        return out

    renumber = () if schedule.cuts[0].positions == "keep" else (0,)
    run_reference(family, case, schedule, {0: ruled} | (later or {}), EXACT, renumber)


# --- rules ------------------------------------------------------------------------------------------------


def received(view):
    """What each patch receives: of the summary, or of all on average; patches that become one have the mean of their queries and keys."""
    seen, n = view["seen"], view["group"]
    if view["summary"]:
        return seen[:, 0, 1:].mean(0)
    return view["logits"].unflatten(1, (-1, n)).mean(2).unflatten(2, (-1, n)).mean(3).softmax(-1).mean((0, 1))


def by_keys(folds, penalty):
    def rule(view, left):
        summary, group = view["summary"], view["group"]
        keys = view["k"].mean(1)[summary:].unflatten(0, (-1, group)).mean(1)
        off = received(view) * 100 * penalty if penalty else torch.zeros(len(keys))
        joined = [[i] for i in range(len(keys))]
        for _ in range(folds):
            whole = F.normalize(torch.stack([keys[who].sum(0) for who in joined]).float(), dim=-1)
            movers = list(range(1 if summary else 0, len(joined), 2))
            stay = [i for i in range(len(joined)) if i not in movers]
            many = min(len(joined) // 2, len(joined) - left)
            best = {i: max(stay, key=lambda j: float(whole[i] @ whole[j])) for i in movers}
            worth = {i: float(whole[i] @ whole[best[i]] - off[joined[i]].mean()) for i in movers}
            for i in sorted(movers, key=lambda i: -worth[i])[:many]:
                joined[best[i]] = joined[i] + joined[best[i]]  # the place is the last one's
            gone = sorted(movers, key=lambda i: -worth[i])[:many]
            joined = [who for i, who in enumerate(joined) if i not in gone]
        return joined

    return rule


def best_of(scores):
    """Drop all but the groups of highest score."""

    def rule(view, left):
        worth = scores(view)
        return [[i] for i in sorted(worth.argsort(descending=True, stable=True)[:left].tolist())]

    return rule


def unlike_mean(view):
    units = view["hidden"][view["summary"] :].unflatten(0, (-1, view["group"])).flatten(1)
    return 1 - F.cosine_similarity(units, units.mean(0)[None], dim=-1)


def absorbing(share, group):
    """By log-sum-exp of a patch's own logits (of patches that become one: their mean) the best stay, and centres take up the others."""

    def rule(view, left):
        summary, n = view["summary"], view["group"]
        units = view["hidden"][summary:].unflatten(0, (-1, n)).flatten(1)
        logits = view["logits"][:, summary:].unflatten(1, (-1, n)).mean(2).unflatten(2, (-1, n)).mean(3)
        kept, new = absorbed(logits.logsumexp(-1).mean(0), units, left, share, group)
        return [[i] for i in kept], new

    return rule


def cut_inside(schedule, pictures=2):
    """The cuts of a schedule after a run of LLaVA's tower, without a trace."""
    tiny, tower = deep("llava"), own_configs(vision_tower(deep("llava").model))
    pixels, cutting = tiny.inputs(text=(9,), images=(pictures,))["pixel_values"], Cutting(tower, 3, schedule, together=0)
    with torch.no_grad(), cutting.over(tiled(pixels, tiny.visual_tokens, tuple(cutting.cuts.values()))):
        tower(pixels)
        cutting.alive()
    return cutting


# --- tests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_folder(family, case):
    """In the last block that is used, patches of like keys become one, less what the summary or all attend to."""
    check(family, case, Schedule.preset("folder", keep=0.3, tower=True), [by_keys(3, 5.0)])


@pytest.mark.parametrize("family", FAMILIES)
def test_tome(family):
    """In several blocks, each of which counts those before by their sizes."""
    schedule = Schedule.preset("tome", keep=0.4, layers=(1, 2))
    check(family, "two pictures and a ragged batch", schedule, [by_keys(1, 0.0)] * 2, proportional=True)


@pytest.mark.parametrize("layers", [(1,), (1, 2), (0.25, 0.5, 0.75)])
@pytest.mark.parametrize("keep", [0.5, 0.3, 0.1, 0.03])
def test_tome_loses_no_patch(keep, layers):
    """Sizes sum to all, where a cut leaves less than half of what arrives, too."""
    found = cut_inside(Schedule.preset("tome", keep=keep, layers=layers))
    tokens = deep("llava").visual_tokens
    assert found.size[:, 1:].sum(1).tolist() == [tokens] * 2
    assert found.size.shape[1] == 1 + share_of(keep, tokens) < 1 + tokens


@pytest.mark.parametrize("keep", [0.99, 0.6, 0.5, 0.49, 1 / 3, 0.25, 0.2, 0.1, 0.02])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_tome_pairs_often_enough_however_shares_round(keep, layers):
    """Also where shares of a shallow tower fall on one block, of which the last cut counts."""
    cuts = Schedule.preset("tome", keep=keep, layers=tuple(range(layers))).tower
    for cut, before in zip(cuts, (1.0, *(cut.keep for cut in cuts)), strict=False):
        for tokens in range(1, 1500):
            for arriving in (tokens, share_of(before, tokens)):
                assert math.ceil(arriving / 2**cut.score.folds) <= share_of(cut.keep, tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_resembles_the_mean_leaves(family):
    cut = TowerCut(layer=1, keep=0.5, score="unlike-mean")
    schedule = Schedule(tower=(cut,), cuts=(Cut(layer=0, keep=0.5, score="survived"),))
    check(family, "two pictures and a ragged batch", schedule, [best_of(unlike_mean)])


@pytest.mark.parametrize(("family", "blocks"), [("llava", (1,)), *((family, (1, 2)) for family in FAMILIES)])
def test_illava(family, blocks):
    """Its cuts of the tower, then those of the decoder, of what they left. In so shallow a tower the preset's four fall on one block."""
    schedule = Schedule.preset("illava", keep=0.6, layers=(1, 3), centres=0.2, group=3, tower=0.6)
    inside = schedule.tower[::-1][: len(blocks)][::-1]
    if len(blocks) > 1:
        apart = tuple(cut.model_copy(update={"layer": at}) for at, cut in zip(blocks, inside, strict=True))
        schedule = schedule.model_copy(update={"tower": apart})
    assert tuple(schedule.in_tower(3)) == blocks
    shares = {1: 0.6**0.5 * 0.6, 3: 0.6 * 0.6}

    def rule(seen):
        kept = [max(1, math.floor(n * shares[seen.layer] + 0.5)) for n in seen.sizes]
        return [absorbed(s, h, m, 0.2, 3) for s, h, m in zip(log_sum_exp(seen, family == "paligemma"), seen.images, kept, strict=True)]

    check(family, "two pictures and a ragged batch", schedule, [absorbing(0.2, 3)] * len(blocks), later={1: rule, 3: rule})


def test_meteor():
    """In the tower what resembles the mean leaves, then what is attended to least; in the decoder, by a few heads, of what they left."""
    schedule = Schedule.preset("meteor", keep=0.5, layer=2, heads=3, tower=0.5)
    assert tuple(schedule.in_tower(3)) == (1, 2)

    def rule(seen):
        q, k, _ = seen.attention()
        logits = (q @ k.transpose(1, 2)).float() * q.shape[-1] ** -0.5
        blind = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
        words = [i for i in range(len(seen.hidden)) if seen.text[i] and i > int(seen.spans[-1][-1])]
        paid = logits.masked_fill(blind, -torch.inf).softmax(-1)[:, words].mean(1)
        heads = paid[:, torch.cat(seen.spans)].sum(1).topk(3).indices
        score = [paid[heads].mean(0)[span] for span in seen.spans]
        kept = [math.floor(n * 0.25 + 0.5) for n in seen.sizes]
        return [sorted(s.argsort(descending=True, stable=True)[:m].tolist()) for s, m in zip(score, kept, strict=True)]

    check("llava", "two pictures and a ragged batch", schedule, [best_of(unlike_mean), best_of(received)], later={2: rule})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_tower_attends_to_stays(family):
    cut = TowerCut(layer=1, keep=0.5, score="salience")
    schedule = Schedule(tower=(cut,), cuts=(Cut(layer=0, keep=0.5, score="survived"),))
    check(family, "two pictures and a ragged batch", schedule, [best_of(received)])


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3_vl"])
def test_keeping_everything_changes_nothing(family):
    fast = unreduced(family).lightvlm.with_schedule(Schedule.preset("folder", keep=1.0, tower=True))
    inputs = deep(family).inputs(text=(9, 6), images=(1, 2))
    assert difference(answer(unreduced(family), inputs), answer(fast, inputs)) <= EXACT


def test_folder_then_lightvlm_then_aircache(tmp_path):
    """One schedule file: in the tower, in the layers, and in the cache."""
    folder, layers = Schedule.preset("folder", keep=0.5, tower=True), Schedule.preset("lightvlm", keep=0.25)
    both = Schedule(name="all", tower=folder.tower, cuts=(*folder.cuts, *layers.cuts[1:]), kv=Schedule.preset("aircache", capacity=0.1).kv)
    both.save(tmp_path / "all.toml")
    fast = unreduced("llava").lightvlm.with_schedule(tmp_path / "all.toml")
    assert fast.lightvlm.schedule == both
    inputs = deep("llava").inputs(text=(9, 6), images=(1, 2))
    said, found = answer(fast, inputs), fast.lightvlm.survivors
    left = [inputs["input_ids"].shape[1], *(found[f"index.{i}"].shape[1] for i in range(3))]
    assert left == sorted(set(left), reverse=True)
    cuts = unreduced("llava").lightvlm.with_schedule(both.model_copy(update={"kv": None}))
    logits = answer(cuts, inputs).logits
    assert float((said.logits[0] - logits[0]).abs().max() / logits[0].abs().max()) <= EXACT  # entries leave after the prompt
    assert difference(answer(cuts, inputs), said) > EXACT
    alone = unreduced("llava").lightvlm.with_schedule(folder)
    answer(alone, inputs)
    assert found["index.0"].equal(alone.lightvlm.survivors["index.0"])
    for row in range(2):
        one = answer(fast, deep("llava").inputs(text=((9, 6)[row],), images=((1, 2)[row],), seed=row))
        assert said.sequences[row, -len(one.logits):].equal(one.sequences[0, -len(one.logits):])
        for ours, theirs in zip(said.logits, one.logits, strict=True):
            assert float((ours[row] - theirs[0]).abs().max() / theirs.abs().max()) <= references.ALONE


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("internvl", "65 tokens of a tile that becomes 16"),
        ("smolvlm", "which patches become tokens depends on the picture's size"),
        ("llava_next", "which patches become tokens depends on the picture's size"),
        ("gemma3", "64 tokens of a tile that becomes 16"),
        ("deepseek_vl_hybrid", "two towers, of pixel_values and of high_res_pixel_values, and joins what they make by channel"),
        ("llava_onevision", "follow another rule than LLaVA-NeXT's; not as tiles: the tower is told batch_num_images, image_sizes"),
    ],
)
def test_refuses_towers_whose_tokens_it_cannot_tell(family, why):
    tiny = zoo.build(family, layers=2)
    fast = lightvlm.compile(tiny.model, Schedule.preset("folder", tower=True), backend="eager")
    with pytest.raises(NotSupported, match=why):
        answer(fast, tiny.inputs(text=(9,), images=(1,)))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_refuses_a_video(family):
    """Only pictures are cut; Qwen3-VL asks get_image_features() for a video, too."""
    tiny = zoo.build(family, layers=2)
    fast = lightvlm.compile(tiny.model, Schedule.preset("folder", tower=True), backend="eager")
    with torch.no_grad(), pytest.raises(NotSupported, match="done here: a tower's graph is made for pictures, and this is a video"):
        fast(**video(2 * math.prod(FRAME)))


def test_refuses_windows_after_the_cut():
    tiny = zoo.build("qwen2_5_vl", layers=2)
    fast = lightvlm.compile(tiny.model, Schedule.preset("tome", layers=(0,)), backend="eager")
    with pytest.raises(NotSupported, match=r"blocks \[0\] of its tower attend within windows"):
        answer(fast, tiny.inputs(text=(9,), images=(1,)))


def test_refuses_blocks_that_a_tower_has_not():
    tiny = zoo.build("llava", layers=2)
    fast = lightvlm.compile(tiny.model, Schedule.preset("tome", layers=(0, 1)), backend="eager")
    with pytest.raises(ScheduleError, match="tower: block 1 of a vision tower that uses 1 blocks"):
        answer(fast, tiny.inputs(text=(9,), images=(1,)))


def test_shares_that_fall_on_one_block_of_a_shallow_tower_are_one_cut():
    schedule = Schedule.preset("tome")
    assert list(schedule.in_tower(1).items()) == [(0, schedule.tower[-1])]
    assert list(schedule.in_tower(24)) == [6, 12, 18]


@pytest.mark.parametrize("layers", [(1, 1), (2, 1), (0, 0.5)])
def test_refuses_blocks_that_do_not_rise(layers):
    with pytest.raises(ScheduleError, match="tower: layers must rise and not repeat"):
        Schedule.preset("tome", layers=layers)


@pytest.mark.parametrize(
    ("tower", "cuts"),
    [
        (0.5, ()),
        (0.5, (Cut(layer=0, keep=0.4, score="survived"),)),
        (None, (Cut(layer=0, keep=0.5, score="survived"),)),
        (0.5, (Cut(layer=1, keep=0.5, score="survived"),)),
    ],
)
def test_refuses_a_tower_whose_prompt_does_not_follow(tower, cuts):
    inside = () if tower is None else (TowerCut(layer=0, keep=tower, score="unlike-mean"),)
    with pytest.raises(ScheduleError, match="tower: what leaves inside the vision tower leaves the prompt"):
        Schedule(tower=inside, cuts=cuts)


METHODS = [*((score, "prune") for score in TOKEN_SCORES.names), *(("density", combine) for combine in COMBINES.names)]
REFUSED = {"raters", "text-mean", "visual-heads", "weighted-heads", "last-query", "grid-last-query", "peak", "survived", "variation",
           "unlike-others", "lattice", "frame-change", "group-change",
           "shot-anchors", "earlier-frame", "into-anchors", "low-pass", "pool"}  # fmt: skip


@pytest.mark.parametrize(("score", "combine"), METHODS)
def test_every_method_runs_inside_a_tower_or_is_refused_by_name(score, combine):
    given = {"layer": 1, "keep": 0.4, "score": score, "combine": combine}
    if name := next(iter({score, combine} & REFUSED), None):
        why = rf"tower: (score|combine) '{name}' (reads|is|compares) .*: a cut inside the vision tower knows"
        with pytest.raises(ScheduleError, match=why):
            TowerCut(**given)
        return
    found = cut_inside(Schedule(tower=(TowerCut(**given),), cuts=(Cut(layer=0, keep=0.4, score="survived"),)))
    assert found.index.shape == (2, 1 + share_of(0.4, deep("llava").visual_tokens))


@pytest.mark.parametrize(("given", "said"), [
    ({"score": {"name": "log-sum-exp", "rope": False}}, "score 'log-sum-exp' has rope=False"),
    ({"score": {"name": "received", "ahead": True}}, "score 'received' has ahead=True"),
    ({"score": {"name": "visual-heads", "rate": 0.5}}, "score 'visual-heads' is what the text asks for; score 'visual-heads' has a count"),
    ({"score": "salience", "proportional": True}, "combine='prune' makes none"),
])  # fmt: skip
def test_refuses_what_a_block_of_a_tower_does_not_know(given, said):
    with pytest.raises(ScheduleError, match=f"tower: .*{said}"):
        TowerCut(layer=1, keep=0.5, **given)


@pytest.mark.parametrize("combine", ["neighbours", "merge"])
def test_refuses_a_first_cut_that_would_combine_what_left_inside_the_tower(combine):
    """Of that there is nothing to combine, and attention of the tower is not told beside it."""
    inside, first = (TowerCut(layer=0, keep=0.5, score="unlike-mean"),), Cut(layer=0, keep=0.5, score="survived", combine=combine)
    with pytest.raises(ScheduleError, match=f"only takes away what left inside the vision tower, but has combine='{combine}'; give that"):
        Schedule(tower=inside, cuts=(first,))
    with pytest.raises(ScheduleError, match="only the first cut can use combine 'neighbours'"):
        Schedule(tower=inside, cuts=(first.model_copy(update={"combine": "prune"}), Cut(layer=1, keep=0.2, combine="neighbours")))


@pytest.mark.full
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_artifacts_answer_alike(family, tmp_path):
    tiny = deep(family)
    inputs = tiny.inputs(text=(9, 6), images=(1, 2))
    folder, layers = Schedule.preset("folder", keep=0.5, tower=True), Schedule.preset("lightvlm", keep=0.25)
    tried = {"folder": Schedule.preset("folder", tower=True), "tome": Schedule.preset("tome", layers=(1, 2))}
    if family == "llava":
        cuts, kv = (*folder.cuts, *layers.cuts[1:]), Schedule.preset("aircache", capacity=0.1).kv
        tried |= {
            "illava": Schedule.preset("illava", layers=(1, 3), tower=0.6), "meteor": Schedule.preset("meteor", layer=2, tower=0.5),
            "three": folder.model_copy(update={"cuts": cuts, "kv": kv}),
        }  # fmt: skip
    for preset, schedule in tried.items():
        lightvlm.export(tiny.model, schedule, tmp_path / preset, inputs=inputs, new_tokens=8)
        fast = unreduced(family).lightvlm.with_schedule(schedule)
        for asked in (inputs, tiny.inputs(text=(7, 9), images=(1, 1), seed=3)):
            expected = fast.generate(**asked, max_new_tokens=8, do_sample=False)[:, -8:]
            got = lightvlm.load(tmp_path / preset).generate(**{k: v.numpy() for k, v in asked.items()}, max_new_tokens=8)
            assert got[:, -8:].tolist() == expected.tolist()
