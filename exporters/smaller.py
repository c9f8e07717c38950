"""Pictures made smaller before a vision tower that takes tiles of one size, in its graph: the baseline of VTC-Bench (arXiv 2510.07143).

Processors and prompts stay as they are: the features of a smaller picture stand in the places of a smaller grid, and the prompt's first
cut takes the other places away, as it does for cuts inside a tower.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightvlm_fx.exporters.tower_cuts import NotCut
from lightvlm_fx.exporters.tower_forms import Whole
from lightvlm_fx.exporters.vision import Tower, Vision
from lightvlm_fx.methods.base import Picture
from lightvlm_fx.methods.counts.lattice import Lattice
from lightvlm_fx.model.locate import vision_tower
from lightvlm_fx.ops.lattice import central

INTERPOLATES = "interpolate_pos_encoding"  # by which towers of transformers take pictures of other sizes


def resizing(size: int, small: int) -> Tensor:
    """The matrix [small, size] that makes a row of `size` pixels one of `small`: bicubic, antialiased, as processors resize."""
    return F.interpolate(torch.eye(size)[None, None], size=(small, size), mode="bicubic", antialias=True, align_corners=False)[0, 0]


class Smaller(nn.Module):
    """Squares [n, C, H, H] to features [n * N, D], `side` of their height and width before the tower, and which of the N are left [n * N].

    Resizing is two products with a constant matrix, which every target has, and means the same after normalisation as before it.
    Raises NotCut for tiles that are not squares of whole cells.
    """

    matrix: Tensor
    places: Tensor
    alive: Tensor

    def __init__(self, model: Any, how: dict[str, Any], side: float) -> None:
        super().__init__()
        if how["kind"] == "patches":
            raise NotCut("a tower of packed patches takes pictures of every size: bound their pixels in the processor (docs/faq.md)")
        if how["kind"] != "tiles" or how.get("mask"):
            raise NotCut("its processor decides by a picture's size how many tiles it has, or which part of them is real")
        tokens, (height, width) = how["tokens"], how["shape"][-2:]
        rows = math.isqrt(tokens)
        if height != width or rows**2 != tokens:
            raise NotCut(f"tiles of {height} x {width} pixels and {tokens} tokens are no squares")
        small = math.isqrt(Lattice(side=side).tokens(Picture(tokens), tokens))
        if height * small % rows:
            raise NotCut(f"tiles of {height} pixels and {rows} rows of tokens cannot have {small} rows, which are no whole pixels")
        self.tower, self.tokens, self.small = Tower(model, {}), tokens, small
        near = torch.tensor([at for at in range(rows) if central(at, rows, small)])
        places = (near[:, None] * rows + near).flatten()
        weight = next(vision_tower(model).parameters())
        self.register_buffer("matrix", resizing(height, height * small // rows).to(weight), persistent=False)
        self.register_buffer("places", places.to(weight.device), persistent=False)
        self.register_buffer("alive", torch.zeros(tokens).scatter(0, places, 1.0).to(weight.device), persistent=False)
        tower = vision_tower(model)
        if INTERPOLATES in inspect.signature(tower.forward).parameters:
            tower.register_forward_pre_hook(lambda module, args, given: (args, given | {INTERPOLATES: True}), with_kwargs=True)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        given, tiles = self.matrix @ pixel_values @ self.matrix.T, pixel_values.shape[0]
        with Whole():
            features, *more = self.tower._features(given)
        return self._in_place(features, tiles), self.alive.expand(tiles, -1).flatten(), *(self._in_place(x, tiles) for x in more)

    def _in_place(self, features: Tensor, tiles: int) -> Tensor:
        """Features [n * N, D] of [n * M, D], M of a smaller grid."""
        width = features.shape[-1]
        at = self.places[:, None].expand(tiles, -1, width)
        whole = features.new_zeros(tiles, self.tokens, width)
        return whole.scatter(1, at, features.view(tiles, self.small**2, width)).flatten(0, 1)


def check_smaller(stage: Vision, inputs: dict[str, Tensor]) -> None:
    """Raise NotCut where the tower does not take smaller pictures, or makes another number of tokens of them."""
    try:
        with torch.no_grad():
            stage(**inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise NotCut(f"its tower does not take smaller pictures: {type(error).__name__}: {str(error)[:300]}") from error
