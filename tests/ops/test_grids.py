"""What reads rows, columns and frames: smaller grids, and the same place in other frames."""

import math

import pytest
import torch
from batches import OPS
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.methods.base import Picture
from lightvlm_fx.methods.combines.low_pass import low_pass
from lightvlm_fx.methods.counts.frame_groups import FrameGroups
from lightvlm_fx.methods.counts.lattice import Lattice
from lightvlm_fx.methods.counts.share_of_video import ShareOfVideo
from lightvlm_fx.methods.counts.shared_total import SharedTotal
from lightvlm_fx.model.layout import Layout
from lightvlm_fx.ops.lattice import small_grid
from lightvlm_fx.ops.same_place import change, in_frame, same_place
from lightvlm_fx.ops.segments import PADDING, TEXT, image_tokens

pytestmark = pytest.mark.usefixtures("tile")
grids = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))


class Rows:
    """A batch of rows of pictures (frames, rows, columns) with text around, padded on the left; what stays of each by `keep`."""

    def __init__(self, rows, keep, seed=0, pad=0):
        tokens = []
        for row in rows:
            tokens.append([TEXT])
            for number, grid in enumerate(row):
                tokens[-1] += [number] * math.prod(grid) + [TEXT]
        width = max(map(len, tokens)) + pad
        self.segment = torch.tensor([[PADDING] * (width - len(row)) + row for row in tokens])
        self.grid = Layout(self.segment, tuple(tuple(map(math.prod, row)) for row in rows), tuple(g for row in rows for g in row)).places()
        table = torch.tensor([[keep(Picture(math.prod(g), g, len(row))) for g in row] + [0] * (4 - len(row)) for row in rows])
        self.budget = table.gather(1, self.segment.clamp_min(0))
        self.length = max(row.count(TEXT) + int(n.sum()) for row, n in zip(tokens, table, strict=True))
        draw = torch.Generator().manual_seed(seed)
        made = [torch.randn(len(row), 4, generator=draw) for row in tokens]
        self.hidden = torch.stack([torch.cat([torch.full((width - len(x), 4), 7.0), x]) for x in made])
        self.pictures = [(b, i, g) for b, row in enumerate(rows) for i, g in enumerate(row)]

    def own(self, x, b, number):
        return x[b][self.segment[b] == number]

    def cut(self, score, combine):
        """Of each picture what is left: places in it, their new states, sizes; and where all tokens went."""
        index, left, _ = OPS.select_tokens(score, self.segment, self.budget, self.length)
        size = torch.ones(self.segment.shape)
        given = [self.hidden, size, self.segment, *([self.budget] if combine != "earlier_frame" else []), index, left, self.grid]
        merged, size, went = getattr(OPS, f"combine_{combine}")(*given)
        found = []
        for b, number, _ in self.pictures:
            first, mine = int((self.segment[b] == number).nonzero()[0]), left[b] == number
            found.append(((index[b][mine] - first).tolist(), merged[b][mine], size[b][mine]))
        return found, went, index, left


rows = st.lists(st.lists(grids, max_size=2), min_size=1, max_size=3).filter(any)
sides = st.sampled_from([1 / 3, 1 / 2, 2 / 3, 3 / 4])


@given(rows, sides)
def test_pool_equals_a_loop(made, side):
    """Of each frame, means over cells; one survivor a cell, of every token."""
    batch = Rows(made, lambda p: Lattice(side=side).tokens(p, p.tokens))
    found, went, *_ = batch.cut(OPS.score_lattice(batch.segment, batch.budget, batch.grid), "pool")
    for (b, number, grid), (kept, merged, size) in zip(batch.pictures, found, strict=True):
        small = [max(int(n * side + 1e-9), 1) for n in grid[1:]]
        cells = {}
        for i, x in enumerate(batch.own(batch.hidden, b, number)):
            t, y, c = i // (grid[1] * grid[2]), i // grid[2] % grid[1], i % grid[2]
            cells.setdefault((t, int((y + 0.5) * small[0] / grid[1]), int((c + 0.5) * small[1] / grid[2])), []).append((i, x))
        assert len(kept) == grid[0] * small[0] * small[1] == len(cells)
        for key, i, new, n in zip(sorted(cells), kept, merged, size, strict=True):
            assert i in [j for j, _ in cells[key]]
            torch.testing.assert_close(new, torch.stack([x for _, x in cells[key]]).mean(0))
            assert n == len(cells[key])
        assert (batch.own(went, b, number) >= 0).all()


@given(rows, sides, st.integers(0, 3))
def test_low_pass_leaves_constant_pictures_as_they_are(made, side, pad):
    batch = Rows(made, lambda p: Lattice(side=side).tokens(p, p.tokens), pad=pad)
    batch.hidden = torch.where(batch.segment.unsqueeze(-1) >= 0, batch.segment.unsqueeze(-1).float() + 1, batch.hidden)
    found, *_ = batch.cut(OPS.score_lattice(batch.segment, batch.budget, batch.grid), "low_pass")
    for (_, number, grid), (kept, merged, size) in zip(batch.pictures, found, strict=True):
        torch.testing.assert_close(merged, torch.full_like(merged, number + 1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(size.sum(), torch.tensor(float(math.prod(grid))))
        assert len(kept) == len(merged)


@pytest.mark.parametrize("side", [1, 2, 3, 8, 24, 27, 100])
def test_low_pass_is_cosine_transforms_cropped(side):
    def transform(n):
        k, y = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
        return torch.cos(math.pi * k * (2 * y + 1) / (2 * n)) * torch.where(k == 0, math.sqrt(1 / n), math.sqrt(2 / n))

    for small in range(1, side + 1):
        wanted = transform(small).T @ transform(side)[:small] * math.sqrt(small / side)
        at, place = torch.arange(small)[:, None], torch.arange(side)[None]
        got = low_pass(at, torch.full_like(at, small), torch.full_like(at, side), place)
        torch.testing.assert_close(got, wanted.float(), atol=1e-6, rtol=0)


def cut_by(batch, score, combine):
    by = OPS.score_random(batch.segment, 1, 0) if score == "random" else OPS.score_lattice(batch.segment, batch.budget, batch.grid)
    return batch.cut(by, combine)[0]


@given(rows, st.sampled_from(["pool", "low_pass", "earlier_frame"]), st.sampled_from(["random", "lattice"]), st.floats(0.2, 1))
def test_a_row_does_not_depend_on_others_and_its_padding(made, combine, score, keep):
    """Whatever chose the survivors."""
    def kept(p):
        return max(1, round(p.tokens * keep))

    together = Rows(made, kept, pad=3)
    found = iter(cut_by(together, score, combine))
    for b, row in enumerate(made):
        alone = Rows([row], kept)
        alone.hidden = together.hidden[b : b + 1, -alone.segment.shape[1] :]
        for places, merged, size in cut_by(alone, score, combine):
            other = next(found)
            assert other[0] == places
            torch.testing.assert_close(other[1:], (merged, size), atol=1e-5, rtol=1e-5)


@given(rows, st.sampled_from(["pool", "low_pass", "earlier_frame"]), st.sampled_from(["random", "lattice"]))
def test_what_keeps_everything_changes_nothing(made, combine, score):
    batch = Rows(made, lambda p: p.tokens, pad=2)
    for (b, number, grid), (places, merged, size) in zip(batch.pictures, cut_by(batch, score, combine), strict=True):
        assert places == list(range(math.prod(grid)))
        torch.testing.assert_close(merged, batch.own(batch.hidden, b, number), atol=1e-5, rtol=1e-5)
        assert (size == 1).all()


def test_pictures_that_an_earlier_cut_reduced_keep_their_survivors_under_low_pass():
    batch = Rows([[(1, 4, 4)]], lambda p: 4)
    some = torch.tensor([0, 1, 3, 4, 6, 8, 9, 11, 14, 16, 17])
    batch.segment, batch.grid, batch.hidden = (x[:, some] for x in (batch.segment, batch.grid, batch.hidden))
    batch.budget, batch.length = batch.budget[:, some], 6
    found, *_ = batch.cut(OPS.score_lattice(batch.segment, batch.budget, batch.grid), "low_pass")
    (kept, merged, size), = found
    assert merged.equal(batch.own(batch.hidden, 0, 0)[kept])
    assert (size == 1).all()


@given(grids, sides)
def test_sides_follow_from_the_budget(grid, side):
    budget = Lattice(side=side).tokens(Picture(math.prod(grid), grid), math.prod(grid))
    told = torch.tensor([[[0, 0, 0, *grid]]])
    assert small_grid(told, torch.tensor([[budget]])).tolist() == [[[max(int(n * side + 1e-9), 1) for n in grid[1:]]]]


@pytest.mark.parametrize(("grid", "beside", "tokens"), [
    ((1, 24, 24), 1, 144), ((1, 24, 24), 20, 100), ((32, 24, 24), 1, 32 * 64),
    ((3000, 24, 24), 1, 3000), ((1, 6, 6), 1, 36), ((1, 300, 1), 1, 142),
])  # fmt: skip
def test_frames_share_a_total(grid, beside, tokens):
    """The root of 2048 / 32 is 8; above 2048 frames each has one token; sides come in 120ths."""
    assert SharedTotal().tokens(Picture(math.prod(grid), grid, beside), math.prod(grid)) == tokens


# --- videos ----------------------------------------------------------------------------------------------


@given(st.lists(st.lists(grids, min_size=1, max_size=2), min_size=1, max_size=2), st.integers(-2, 1))
def test_finds_the_place_in_another_frame(made, step):
    batch = Rows(made, lambda p: 1, pad=2)
    at, there = in_frame(batch.grid[..., 0] + step, batch.grid, batch.segment)
    for b, number, grid in batch.pictures:
        first = int((batch.segment[b] == number).nonzero()[0])
        for i, (frame, *_) in enumerate(batch.own(batch.grid, b, number).tolist()):
            assert bool(there[b, first + i]) == (0 <= frame + step < grid[0])
            if there[b, first + i]:
                assert int(at[b, first + i]) == first + i + step * grid[1] * grid[2]
    assert not there[batch.segment < 0].any()
    assert (change(batch.hidden, batch.grid[..., 0] + step, batch.grid, batch.segment)[~there] == 2).all()


@given(st.lists(st.lists(grids, min_size=1, max_size=2), min_size=1, max_size=2))
def test_every_frame_of_a_group_but_the_first_keeps_what_changed_most(made):
    batch = Rows(made, lambda p: FrameGroups(share=0.5).tokens(p, p.tokens))
    score = OPS.score_group_change(batch.hidden, batch.segment, batch.budget, batch.grid)
    index, left, _ = OPS.select_tokens(score, batch.segment, batch.budget, batch.length)
    for b, number, grid in batch.pictures:
        frames = batch.grid[b][index[b][left[b] == number]][:, 0]
        n = grid[1] * grid[2]
        assert [int((frames == t).sum()) for t in range(grid[0])] == [n if t % 4 == 0 else n // 2 for t in range(grid[0])]


@given(st.lists(st.lists(grids, min_size=1, max_size=2), min_size=1, max_size=2), st.sampled_from([0.1, 0.3, 0.7]))
def test_what_changed_least_joins_its_place_in_an_earlier_frame(made, share):
    """No token is lost: the first frame stays."""
    batch = Rows(made, lambda p: ShareOfVideo(share=share).tokens(p, p.tokens))
    score = OPS.score_frame_change(batch.hidden, batch.segment, batch.grid)
    found, went, *_ = batch.cut(score, "earlier_frame")
    for (b, number, grid), (kept, merged, size) in zip(batch.pictures, found, strict=True):
        n, x = grid[1] * grid[2], batch.own(batch.hidden, b, number)
        groups = {i: [i] for i in kept}
        for i in range(len(x)):
            if i not in groups:
                groups[max(j for j in kept if j % n == i % n and j < i)].append(i)
        torch.testing.assert_close(merged, torch.stack([x[group].mean(0) for group in groups.values()]))
        assert size.tolist() == [len(group) for group in groups.values()]
        assert (batch.own(went, b, number) >= 0).all()


def test_survivors_go_to_themselves_and_fillers_to_the_last_of_their_place():
    segment = torch.tensor([[TEXT, 0, 0, 0, 0]])
    place = torch.tensor([[0, 1, 1, 2, 1]])
    index, left = torch.tensor([[0, 1, 2, 4]]), torch.tensor([[TEXT, 0, 0, PADDING]])
    assert same_place(place, segment, index, left).tolist() == [[0, 1, 2, -1, 2]]
    assert same_place(place, segment, index, left, earlier=True).tolist() == [[0, 1, 2, -1, 2]]
    assert image_tokens(segment)[0, 1:].tolist() == [4] * 4


@given(st.lists(st.lists(grids, min_size=1, max_size=2), min_size=1, max_size=3), st.floats(0.1, 1), st.integers(1, 4), st.floats(0, 1))
def test_shots_and_anchors_of_a_video_depend_on_nothing_beside_it(made, keep, shots, alike):
    def run(batch, tower):
        score = OPS.score_shot_anchors(batch.hidden, batch.segment, batch.budget, batch.grid, tower, shots, alike, 0.4, 2)
        index, left, rank = OPS.select_tokens(score, batch.segment, batch.budget, batch.length)
        assert ((score > 0) == ((batch.segment >= 0) & (rank < batch.budget))).all()
        size = torch.ones(batch.segment.shape)
        merged, size, went = OPS.combine_into_anchors(batch.hidden, size, score, batch.segment, index, left, batch.grid, 0.6)
        for b, number, _ in batch.pictures:
            mine = left[b] == number
            places = index[b][mine] - int((batch.segment[b] == number).nonzero()[0])
            its = batch.own(went, b, number)
            assert (its[places] == mine.nonzero().flatten()).all()  # what stays belongs to itself
            assert mine[its[its >= 0]].all()
            if len(places) == len(its):
                assert merged[b][mine].equal(batch.own(batch.hidden, b, number))
            yield places, merged[b][mine], size[b][mine]

    def kept(p):
        return max(p.sides[0], round(p.tokens * keep))

    together = Rows(made, kept, pad=2)
    tower = torch.rand(together.segment.shape, generator=torch.Generator().manual_seed(1))
    for (b, number, grid), found in zip(together.pictures, run(together, tower), strict=True):
        alone = Rows([[grid]], kept)
        alone.hidden[:, 1:-1] = together.own(together.hidden, b, number)
        its = torch.zeros(alone.segment.shape)
        its[:, 1:-1] = together.own(tower, b, number)
        (other,) = run(alone, its)
        torch.testing.assert_close(found, other, atol=1e-5, rtol=1e-5)
