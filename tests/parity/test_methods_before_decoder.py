"""Tier 5: methods that reduce what the projector gives, against short, plain, independent references (as in test_methods.py)."""

import math

import pytest
import torch
from references import CASES, FAMILIES, run_reference, tiny, unit

import lightvlm_fx as lightvlm
from lightvlm_fx.errors import NotSupported, ScheduleError
from lightvlm_fx.model.locate import vision_tower
from lightvlm_fx.model.salience import noting, salience
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import answer

EXACT = 1e-5  # of the largest logit
WATCHED = ("llava", "qwen2_5_vl")  # InternVL's pixel shuffle lies between patches and tokens


def attended(seen):
    """Of each image what its tower attends to [n]: LLaVA's own maps of its summary token; of Qwen's windows what tests/core checks."""
    tower, pixels = vision_tower(seen.model), seen.inputs["pixel_values"]
    if "image_grid_thw" not in seen.inputs:
        old = tower.config._attn_implementation
        tower.set_attn_implementation("eager")
        try:
            return list(tower(pixels, output_attentions=True).attentions[-1][:, :, 0, 1:].mean(1))
        finally:
            tower.set_attn_implementation(old)
    grid = seen.inputs["image_grid_thw"]
    with noting(tower, grid) as noted:
        seen.model.model.get_image_features(pixels, grid)
    return list(salience(noted, sum(seen.sizes)).split(seen.sizes))


def rounded(x):
    return max(1, math.floor(x + 0.5))


def check(family, case, name, rule, **options):
    """`rule` says of one image, of its hidden states and what its tower attends to, which tokens stay and what they become."""
    watched = Schedule.preset(name, **options).watches_tower

    def rules(seen):
        return [rule(h, s) for h, s in zip(seen.images, attended(seen) if watched else [None] * len(seen.spans), strict=True)]

    run_reference(family, case, Schedule.preset(name, **options), {0: rules}, EXACT)


def best(salience):
    return salience.argsort(descending=True, stable=True).tolist()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", WATCHED)
@pytest.mark.parametrize("options", [{}, {"dominant": 4, "contextual": 3}], ids=["shares", "counts"])
def test_visionzip(family, case, options):
    """The most salient as they are; evenly spaced others, plus the mean of what is most like each."""

    def rule(hidden, salience):
        n = len(hidden)
        contextual = options.get("contextual") or rounded(n * 0.05)
        dominant = best(salience)[: options.get("dominant") or rounded(n * 0.3) - contextual]
        rest = [i for i in range(n) if i not in dominant]
        targets = rest[:: max(1, len(rest) // contextual)][:contextual]
        others = [i for i in rest if i not in targets]
        nearest = (unit(hidden)[others] @ unit(hidden)[targets].T).argmax(1).tolist()
        new = dict(zip(dominant, hidden[dominant], strict=True))
        for number, target in enumerate(targets):
            mine = [i for i, went in zip(others, nearest, strict=True) if went == number]
            new[target] = hidden[target] + (hidden[mine].mean(0) if mine else 0)
        return sorted(new), torch.stack([new[i] for i in sorted(new)])

    check(family, case, "visionzip", rule, **options)


def prumerge(hidden, salience, order, group, extra):
    """`order` says who stays; the last of it makes room for the sum of what does not."""
    kept, gone = (order[:-1], [i for i in range(len(hidden)) if i not in order[:-1]]) if extra else (order, [])
    new = {}
    for i in kept:
        alike = unit(hidden) @ unit(hidden)[i]
        alike[i] = -9
        near = alike.topk(min(group, len(hidden) - 1)).indices
        new[i] = hidden[i] + (salience[near, None] * hidden[near]).sum(0)
    if extra:
        new[order[-1]] = (salience[gone, None] * hidden[gone]).sum(0)
    return sorted(new), torch.stack([new[i] for i in sorted(new)])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", WATCHED)
@pytest.mark.parametrize("options", [{}, {"group": 5, "extra": False}], ids=["32", "5"])
def test_prumerge(family, case, options):
    def rule(hidden, salience):
        return prumerge(hidden, salience, best(salience)[: rounded(len(hidden) * 0.25)], **({"group": 32, "extra": True} | options))

    check(family, case, "prumerge", rule, keep=0.25, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", WATCHED)
def test_prumerge_plus(family, case):
    def rule(hidden, salience):
        n = len(hidden)
        count = rounded(n * 0.4)
        even = rounded(count * 0.5)
        grid = list(range(n // even // 2, n, n // even))[:even]
        return prumerge(hidden, salience, grid + [i for i in best(salience) if i not in grid][: count - even], 6, True)

    check(family, case, "prumerge+", rule, keep=0.4, group=6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", WATCHED)
def test_fastervlm(family, case):
    check(family, case, "fastervlm", lambda hidden, salience: sorted(best(salience)[: rounded(len(hidden) * 0.3)]), keep=0.3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", WATCHED)
@pytest.mark.parametrize("options", [{}, {"keep": 7, "important": 0.3}, {"keep": 3, "important": 0.0}], ids=["share", "count", "few"])
def test_vispruner(family, case, options):
    """A list of the less salient ones, in which the even ones that resemble an odd one most leave, eight at a time."""

    def rule(hidden, salience):
        keep = options.get("keep", 128 / 576)
        count = keep if isinstance(keep, int) else rounded(len(hidden) * keep)
        important = math.floor(count * options.get("important", 0.5))
        chosen, rest = best(salience)[:important], best(salience)[important:]
        while len(rest) > count - important:
            x = unit(hidden[rest])
            alike = (x[::2] @ x[1::2].T).max(1).values.argsort(descending=True, stable=True).tolist()
            leave = min(8, len(rest) - (count - important))
            rest = [rest[2 * i] for i in alike[leave:]] + rest[1::2]
        return sorted(chosen + rest)

    check(family, case, "vispruner", rule, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", WATCHED)
def test_score(family, case):
    """Greedy: the most salient, then distance to the nearest that was picked times salience^0.8."""

    def rule(hidden, salience):
        apart, chosen = 1 - unit(hidden) @ unit(hidden).T, best(salience)[:1]
        while len(chosen) < rounded(len(hidden) * 0.3):
            gain = apart[:, chosen].min(1).values * salience**0.8
            gain[chosen] = -1
            chosen.append(int(gain.argmax()))
        return sorted(chosen)

    check(family, case, "score", rule, keep=0.3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"keep": 5}, {"keep": 0.8, "louder": False}], ids=["third", "count", "plain"])
def test_folder(family, case, options):
    """A list of (place, sum, size) is folded; the even ones of it may leave."""

    def rule(hidden, _):
        keep = options.get("keep", 1 / 3)
        count = keep if isinstance(keep, int) else rounded(len(hidden) * keep)
        tokens = [(i, x, 1) for i, x in enumerate(hidden)]
        while len(tokens) > count:
            x = unit(torch.stack([total for _, total, _ in tokens]))
            near = (x[::2] @ x[1::2].T).max(1)
            leave = near.values.argsort(descending=True, stable=True)[: min(len(tokens) // 2, len(tokens) - count)].tolist()
            for i in leave:
                to = 2 * int(near.indices[i]) + 1
                place, total, size = tokens[to]
                tokens[to] = place, total + tokens[2 * i][1], size + tokens[2 * i][2]
            tokens = [token for i, token in enumerate(tokens) if i % 2 or i // 2 not in leave]
        louder = options.get("louder", True)
        return [i for i, _, _ in tokens], torch.stack([x / n * (1 + louder * math.log(n)) for _, x, n in tokens])

    check(family, case, "folder", rule, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("negated", [True, False])
def test_cdpruner(family, case, negated):
    """Greedy MAP by a Cholesky factor that grows (Chen, Zhang and Zhou, 2018); ours projects features."""

    def rules(seen):
        out, after = [], seen.text.clone()
        after[: int(seen.spans[-1][-1])] = False
        asked = unit(seen.hidden[after])
        for hidden in seen.images:
            x = unit(hidden)
            r = (x @ asked.T).mean(1) * (-1 if negated else 1)
            r = (r - r.min() + 1e-6) / (r.max() - r.min())
            kernel = r[:, None] * (x @ x.T) * r
            gain, rows, chosen = kernel.diagonal().clone(), [], []
            for _ in range(rounded(len(x) * 0.3)):
                j = int(gain.argmax())
                row = (kernel[j] - sum(c[j] * c for c in rows)) / gain[j] ** 0.5
                gain = gain - row**2
                rows.append(row)
                chosen.append(j)
                gain[chosen] = -1
            out.append(sorted(chosen))
        return out

    run_reference(family, case, Schedule.preset("cdpruner", keep=0.3, negated=negated), {0: rules}, EXACT)


@pytest.mark.parametrize("name", ["visionzip", "prumerge", "prumerge+", "score", "fastervlm", "vispruner"])
def test_refuses_a_tower_whose_patches_are_not_its_tokens(name):
    fast = lightvlm.compile(tiny("internvl").model, name, backend="eager")
    with pytest.raises(NotSupported, match=r"needs to know .* patches became .* tokens"):
        answer(fast, tiny("internvl").inputs(), 2)


def test_refuses_a_share_beside_a_count():
    with pytest.raises(ScheduleError, match=r"visionzip: dominant and contextual must be two shares or two counts, got 0.25 and 10"):
        Schedule.preset("visionzip", contextual=10)


@pytest.mark.full
@pytest.mark.parametrize("name", ["visionzip", "prumerge", "prumerge+", "score", "folder", "cdpruner", "divprune", "vispruner"])
def test_an_artifact_answers_alike(name, tmp_path):
    """ONNX Runtime chooses the tokens that the compiled model chooses."""
    model, inputs = tiny("llava"), tiny("llava").inputs(text=(9,), images=(1,))
    lightvlm.export(model.model, name, tmp_path / "out", inputs=inputs, new_tokens=8)
    fast, vlm = lightvlm.compile(model.model, name, backend="eager"), lightvlm.load(tmp_path / "out")
    for seed in range(3):
        inputs = model.inputs(text=(9,), images=(1,), seed=seed)
        wanted = fast.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)[:, -8:]
        got = vlm.generate(**{key: x.numpy() for key, x in inputs.items()}, max_new_tokens=8, min_new_tokens=8)[:, -8:]
        assert got.tolist() == wanted.tolist()
