"""Score: of every shot of a video salient tokens, and anchors that stand for the others (FastVID, arXiv 2503.11187)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.base import TokenScore, View
from lightvlm_fx.methods.options import Part

if TYPE_CHECKING:
    from torch import Tensor

NEAR = 4  # tokens that a density is of, itself among them


class ShotAnchors(TokenScore):
    """1 for salient tokens that stay, 1 + its shot for an anchor, -its shot for what goes, which the combine `into-anchors` reads.

    Read from the source's code for Qwen2.5-VL. Shots: ops/shots.py, by `shots` and `alike`. Of each shot's part of the budget int(anchors
    * part) are anchors, one at least, all in every `every`-th frame counted from the shot's last; the rest are what the vision tower
    attends to most in each frame, equally many in each. Anchors are density peaks of what is not salient in their frame: exp(-mean squared
    distance to the 4 nearest, itself among them) times the distance to the nearest denser one, distances divided by the root of the width.

    Ours: ties go to the earlier token, where the source adds noise; half of a frame are anchors at most, in shots of one frame too; and
    what such limits leave of the budget goes to the most salient of the picture's other tokens. Left out: frames that hardly differ share
    one frame's tokens there.
    """

    name = "shot-anchors"
    source = "arXiv 2503.11187"
    reads = ("hidden", "budget", "grid", "tower")
    shots: Positive = 8
    alike: Part = 0.9
    anchors: Part = 0.4
    every: Positive = 4

    @property
    def fewest(self) -> int:
        return NEAR

    def score(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import PADDING, image_tokens, over_image, rank_in_segment
        from lightvlm_fx.ops.shots import shots

        segment, visual, tower = view.segment, view.segment >= 0, view.tower
        found = shots(view.hidden, view.grid, segment, self.shots, self.alike)
        n = (view.grid[..., 4] * view.grid[..., 5]).clamp_min(1)
        own = torch.where(visual, found.frame, segment)
        part = view.budget // view.grid[..., 3].clamp_min(1) * found.frames
        anchors = (part.float() * self.anchors + 1e-4).floor().long().clamp_min(1)
        back = found.frames - 1 - found.place
        with_anchors = (found.frames + self.every - 1) // self.every
        here = torch.minimum(_share(anchors, with_anchors, back // self.every), n // 2)
        here = here * ((back % self.every == 0) & (view.budget < image_tokens(segment)))  # a video that stays whole has none
        most = torch.minimum(_share(part - anchors, found.frames, found.place), n - here)
        salient = visual & (rank_in_segment(tower, own) < most)
        peaks = _peaks(view.hidden, torch.where(visual & ~salient & (here > 0), own, PADDING))
        anchor = visual & ~salient & (rank_in_segment(peaks, own) < here)
        over = view.budget - over_image(salient | anchor, segment).long()
        more = rank_in_segment(torch.where(salient | anchor, -1.0, tower), segment) < over
        stays = torch.where(anchor, 1 + found.shot, torch.where(salient | more, 1, -found.shot))
        return torch.where(visual, stays.float(), 0.0)


def _share(total: Tensor, parts: Tensor, number: Tensor) -> Tensor:
    """Of a `total` in so many equal `parts` the one with this `number`; the first ones have one more."""
    return total // parts + (number < total % parts)


def _peaks(hidden: Tensor, kinds: Tensor) -> Tensor:
    """Density times distance to the nearest denser token [B, S] float32, among the tokens of one kind; -1 where `kinds` [B, S] is below 0.

    hidden [B, S, D]. The densest has the largest distance of its kind.
    """
    import torch

    from lightvlm_fx.ops.segments import over_image, rank_in_segment, same_image
    from lightvlm_fx.ops.tiles import span, tiles

    x = hidden.float() / hidden.shape[2] ** 0.5
    square, here, s = (x * x).sum(-1), torch.arange(kinds.shape[1], device=kinds.device), kinds.shape[1]
    far = float("inf")
    density: list[Tensor] = []
    widest: list[Tensor] = []
    distance: list[Tensor] = []

    def distances(start: int, stop: int) -> tuple[Tensor, int, int]:
        first, last = span(kinds[:, start:stop], kinds)
        apart = square[:, start:stop, None] + square[:, None, first:last] - 2 * x[:, start:stop] @ x[:, first:last].transpose(1, 2)
        apart = torch.where(here[start:stop, None] == here[first:last], 0.0, apart.clamp_min(0))
        return torch.where(same_image(kinds[:, start:stop], kinds[:, first:last]), apart, far), first, last

    for start, stop in tiles(x, s, kinds.numel()):
        apart, first, last = distances(start, stop)
        if first == last:
            density.append(torch.zeros_like(square[:, start:stop]))
            widest.append(density[-1])
            continue
        near = apart.topk(min(NEAR, apart.shape[2]), dim=-1, largest=False).values
        there = near < far
        density.append((-torch.where(there, near, 0.0).sum(-1) / there.sum(-1).clamp_min(1)).exp())
        widest.append(torch.where(apart < far, apart, 0.0).amax(2))
    dense, wide = torch.cat(density, 1), torch.cat(widest, 1)
    wide = over_image(torch.where(rank_in_segment(wide, kinds) == 0, wide, 0.0), kinds)
    rank = rank_in_segment(dense, kinds)
    for start, stop in tiles(x, s, kinds.numel()):
        apart, first, last = distances(start, stop)
        if first == last:
            distance.append(torch.full_like(square[:, start:stop], far))
            continue
        denser = rank[:, None, first:last] < rank[:, start:stop, None]
        distance.append(torch.where(denser, apart, far).amin(2))
    nearest = torch.cat(distance, 1)
    return torch.where(kinds >= 0, dense * torch.where(nearest < far, nearest, wide).sqrt(), -1.0)
