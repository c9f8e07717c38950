"""Tier 5: methods that read rows, columns and frames, each against a short, plain, independent reference (see test_methods.py)."""

import math

import numpy as np
import pytest
import torch
from references import ALONE, CASES, FAMILIES, NEW, reference_logits, run_reference, tiny, unit, unreduced

import lightvlm_fx as lightvlm
from lightvlm_fx.bench.memory import FRAME, video
from lightvlm_fx.errors import LightVLMError, NotSupported
from lightvlm_fx.methods.base import Picture
from lightvlm_fx.model.locate import vision_tower
from lightvlm_fx.model.salience import noting, salience
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import answer, difference

EXACT = 1e-5  # of the largest logit
LATTICES = {"fourier": {}, "pool": {}, "dynamic-vlm": {"tokens": 12, "most": 9}}


def centres(side, small):
    """Of each of `small` equal cells of a line, the place of the token nearest to its middle, the earlier of two."""
    middles = [(2 * c + 1) * side / (2 * small) - 0.5 for c in range(small)]
    return [max(range(side), key=lambda y: (-abs(y - m), -y)) for m in middles]


def low_pass(x, small):
    """[H, W, D] to [h, w, D]: orthonormal cosine transforms as matrices, the corner, back at the small size."""
    for axis, n in enumerate(small):
        side = x.shape[axis]
        there, back = (torch.from_numpy(_dct(size)[:n]) for size in (side, n))
        x = torch.tensordot(back.T @ there, x, ([1], [axis])).movedim(0, axis) * math.sqrt(n / side)
    return x


def _dct(n):
    k, y = np.arange(n)[:, None], np.arange(n)
    return np.cos(math.pi * k * (2 * y + 1) / (2 * n)) * np.where(k == 0, math.sqrt(1 / n), math.sqrt(2 / n))


def pooled(x, small):
    """[H, W, D] to [h, w, D]: means of the tokens whose middles lie in each cell."""
    rows, columns = ([int((y + 0.5) * n / side) for y in range(side)] for n, side in zip(small, x.shape, strict=False))
    cells = [[x[[i for i, of in enumerate(rows) if of == r]][:, [j for j, of in enumerate(columns) if of == c]] for c in range(small[1])]
             for r in range(small[0])]  # fmt: skip
    return torch.stack([torch.stack([cell.flatten(0, 1).mean(0) for cell in line]) for line in cells])


def on_lattice(image, grid, small, combine):
    """Places that stay and what they become."""
    x = image.double().view(*grid, -1)
    kept = [r * grid[1] + c for r in centres(grid[0], small[0]) for c in centres(grid[1], small[1])]
    return kept, combine(x, small).flatten(0, 1).to(image.dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LATTICES)
def test_a_smaller_grid(name, family, case):
    """Its tokens stand at the centres of its cells; those of a picture are fewer where another stands beside it."""

    def small(grid, beside):
        if name != "dynamic-vlm":
            part = 2 / 3 if name == "fourier" else 1 / 2
            return tuple(max(int(side * part), 1) for side in grid)
        each, best = min(9, 12 // beside), (1, 1)
        for part in np.linspace(0, 1, 2000):
            sides = tuple(max(int(side * part + 1e-9), 1) for side in grid)
            best = sides if math.prod(sides) <= each else best
        return best

    def rule(seen):
        combine = low_pass if name == "fourier" else pooled
        return [on_lattice(x, grid, small(grid, len(seen.grids)), combine) for x, grid in zip(seen.images, seen.grids, strict=True)]

    run_reference(family, case, Schedule.preset(name, **LATTICES[name]), {0: rule}, EXACT)


# --- videos ----------------------------------------------------------------------------------------------


def run_video(schedule, rule, frames, renumber):
    """A video of Qwen2.5-VL, alone and beside one of another row."""
    size = math.prod(FRAME)
    inputs = video(frames * size)
    fast = unreduced("qwen2_5_vl").lightvlm.with_schedule(schedule)
    alone, pair = answer(fast, inputs, NEW), answer(fast, video(frames * size, rows=2), NEW)
    wanted = reference_logits("qwen2_5_vl", inputs, {0: lambda seen: [rule(seen.images[0].view(frames, size, -1))]}, renumber)
    assert float((alone.logits[0][0].float() - wanted).abs().max() / wanted.abs().max()) <= EXACT
    assert float((pair.logits[0][0] - alone.logits[0][0]).abs().max() / wanted.abs().max()) <= ALONE
    return fast


@pytest.mark.parametrize("frames", [1, 3, 6])
def test_dycoke(frames):
    """Frames 0 and 4 whole; 1 and 2 against 0, 3 against 2, 5 against 4."""

    def rule(x):
        kept, n = [], x.shape[1]
        for t in range(frames):
            other = {0: None, 1: t - 1, 2: t - 2, 3: t - 1}[t % 4]
            alike = torch.zeros(n) if other is None else (unit(x[t]) * unit(x[other])).sum(-1)
            few = n if other is None else int(0.3 * n)
            kept += sorted((t * n + alike.argsort(stable=True)[:few]).tolist())
        return kept

    fast = run_video(Schedule.preset("dycoke"), rule, frames, (0,))
    n = math.prod(FRAME)
    assert fast.lightvlm.schedule.budgets(Picture(6 * n, (6, *FRAME))) == [2 * n + 4 * int(0.3 * n)]


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_framefusion(frames):
    """What is most like its place in the frame before joins it, and what that joined; ids stay."""

    def rule(x):
        n, x = x.shape[1], x.clone()
        apart = torch.cat([torch.full((1, n), 9.0), 1 - (unit(x[1:]) * unit(x[:-1])).sum(-1)]).flatten()
        stay = max(n, frames * n - int(0.7 * (frames * n)))
        kept = sorted(apart.argsort(descending=True, stable=True)[:stay].tolist())
        groups = {i: [i] for i in kept}
        for i in range(frames * n):
            if i not in groups:
                groups[max(j for j in kept if j % n == i % n and j < i)].append(i)
        return kept, torch.stack([x.flatten(0, 1)[group].mean(0) for group in groups.values()])

    run_video(Schedule.preset("framefusion"), rule, frames, ())


def attended(inputs):
    """What the tower attends to in a video [n]; tests/core/test_salience.py checks that it is that of its frames as pictures."""
    model, grid = tiny("qwen2_5_vl").model, inputs["video_grid_thw"]
    with torch.no_grad(), noting(vision_tower(model), grid) as noted:
        model.model.get_video_features(inputs["pixel_values_videos"], grid)
    return salience(noted, int(grid.prod()) // 4)


def shots_of(x, shots, alike):
    """Begin and end of each run of frames of x [F, n, D]."""
    mean = unit(x.mean(1))
    step = (mean[1:] * mean[:-1]).sum(-1)
    cuts = {i + 1 for i in [*step.argsort(stable=True)[: shots - 1].tolist(), *(step < alike).nonzero().flatten().tolist()]}
    begin = [0, *sorted(cuts)]
    return list(zip(begin, [*begin[1:], len(x)], strict=True))


def peaks_of(x, count):
    """The `count` density peaks of x [n, D]."""
    apart = torch.cdist(x.double(), x.double()) / x.shape[1] ** 0.5
    dense = (-apart.sort(1).values[:, :4].square().mean(1)).exp()
    denser = dense[None] > dense[:, None]
    peak = dense * torch.where(denser, apart, torch.inf).amin(1).clamp_max(apart.max())
    return peak.argsort(descending=True, stable=True)[:count].tolist()


@pytest.mark.parametrize(("frames", "options"), [
    (1, {}), (4, {}), (9, {"shots": 2, "alike": 0.0}), (7, {"shots": 3, "alike": 0.5, "own": 0.1, "every": 2}),
])  # fmt: skip
def test_fastvid(frames, options):
    """Shot by shot, loops over its frames; ids stay."""
    many = options.get("every", 4)
    seen = attended(video(frames * math.prod(FRAME))).view(frames, -1)

    def rule(x):
        n, new = x.shape[1], {}
        m, flat = int(0.1 * n), unit(x)
        if frames == 1:
            return list(range(n))
        for first, end in shots_of(x, options.get("shots", 8), options.get("alike", 0.9)):
            count = end - first
            anchors = max(1, int(count * m * 0.4))
            salient, groups, turns = [], [], -(-count // many)
            for i in range(count):
                t, back, rest = first + i, count - 1 - i, count * m - anchors
                most = rest // count + (i < rest % count)
                here = 0 if back % many else anchors // turns + (back // many < anchors % turns)
                order = seen[t].argsort(descending=True, stable=True).tolist()
                salient += [(t, j) for j in order[:most]]
                others = sorted(order[most:])
                if here:
                    groups.append([(t, others[j]) for j in peaks_of(x[t, others], here)])
            new |= {at: x[at] for at in salient}
            for group in groups:
                to = {at: [] for at in group}
                for at in [(t, j) for t in range(first, end) for j in range(n) if (t, j) not in {*salient, *group}]:
                    to[max(group, key=lambda anchor: float(flat[anchor] @ flat[at]))].append(at)
                for at, those in to.items():
                    weight = max(options.get("own", 0.6), 1 / (len(those) + 1))
                    joined = torch.stack([x[other] for other in those]).mean(0) if those else x[at]
                    new[at] = weight * x[at] + (1 - weight) * joined
        assert len(new) == frames * m
        return [t * n + j for t, j in sorted(new)], torch.stack([new[at] for at in sorted(new)])

    fast = run_video(Schedule.preset("fastvid", **options), rule, frames, ())
    n = math.prod(FRAME)
    assert fast.lightvlm.schedule.budgets(Picture(9 * n, (9, *FRAME))) == [9 * int(0.1 * n)]


def test_fastvid_leaves_a_video_whole_of_which_everything_stays():
    inputs = video(6 * math.prod(FRAME))
    fast = unreduced("qwen2_5_vl").lightvlm.with_schedule(Schedule.preset("fastvid", keep=1.0))
    assert difference(answer(unreduced("qwen2_5_vl"), inputs, NEW), answer(fast, inputs, NEW)) <= EXACT


@pytest.mark.parametrize(("family", "why"), [
    ("internvl", "needs to know which patches of the vision tower a visual token comes from"),
    ("llava_next", "has no known grid"),
])  # fmt: skip
def test_fastvid_refuses_pictures_that_it_cannot_tell(family, why):
    fast = lightvlm.compile(tiny(family).model, "fastvid", backend="eager")
    with pytest.raises(LightVLMError, match=why):
        answer(fast, tiny(family).inputs(), NEW)


@pytest.mark.parametrize("name", LATTICES)
def test_every_frame_has_its_smaller_grid(name):
    """Of 40 tokens, 13 fall to each of three frames: 3 times 4 of 8 times 9."""
    frames, options = 3, {"dynamic-vlm": {"tokens": 40}}.get(name, {})
    sides = {"fourier": [int(s * 2 / 3) for s in FRAME], "pool": [int(s / 2) for s in FRAME], "dynamic-vlm": [3, 4]}[name]

    def rule(x):
        each = [on_lattice(frame, FRAME, sides, low_pass if name == "fourier" else pooled) for frame in x]
        return [t * x.shape[1] + i for t, (kept, _) in enumerate(each) for i in kept], torch.cat([new for _, new in each])

    run_video(Schedule.preset(name, **options), rule, frames, (0,))


# --- artifacts -------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("name", ["fourier", "pool", "dynamic-vlm", "dycoke", "framefusion", "fastvid"])
def test_an_artifact_answers_as_the_compiled_model(name, tmp_path):
    """Artifacts take still pictures, which the methods for videos leave whole."""
    options = {"dynamic-vlm": {"tokens": 12}}.get(name, {})
    schedule, x = Schedule.preset(name, **options), tiny("llava").inputs()
    fast = unreduced("llava").lightvlm.with_schedule(schedule)
    lightvlm.export(tiny("llava").model, schedule, tmp_path / "a", inputs=x, new_tokens=8)
    wanted = answer(fast, x, 8).sequences[:, -8:]
    got = lightvlm.load(tmp_path / "a").generate(**x, max_new_tokens=8)
    assert torch.as_tensor(got)[:, -8:].tolist() == wanted.tolist()


def test_an_artifact_of_several_pictures_refuses_a_count_by_their_number(tmp_path):
    with pytest.raises(NotSupported, match="how many stand beside it"):
        lightvlm.export(tiny("llava").model, "dynamic-vlm", tmp_path / "a", inputs=tiny("llava").inputs(images=(2,)), new_tokens=8)
