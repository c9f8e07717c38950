"""Vision towers that attend in another order than that of their visual tokens: by windows, or row by row before they merge.

A tower with windows (Qwen2.5-VL and kin) puts its patches in the order of the windows, groups of patches that become one token
staying together, and puts the tokens back at its end. Some towers attend to patches row by row; only what comes
after them takes the squares of patches that become one token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from lightvlm_fx.errors import NotSupported

GRID = "image_grid_thw"  # the argument that says how many patches (time, height, width) each picture has

# by the tower's model_type, which entry of its config holds the side of the squares that it takes from rows of patches
ROW_BY_ROW = {"paddleocr_vl_vision": "spatial_merge_size", "muse_glimmer_vision": "merge_size", "muse_spark_vision": "merge_size"}


def merge_side(tower: Any) -> int:
    """The side of the squares of patches that become one visual token."""
    return int(getattr(tower.config, ROW_BY_ROW.get(tower.config.model_type, "spatial_merge_size"), None) or 1)


def whole_picture_layers(tower: Any) -> frozenset[int] | None:
    """The layers that attend to a whole picture; None: all of them. Raises NotSupported where there are none."""
    config = tower.config
    layers = getattr(config, "fullatt_block_indexes", None)
    kinds = getattr(config, "layer_types", None) or ()
    if layers is None and "window_attention" in kinds:
        layers = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    if layers is None:
        return None
    if not layers:
        raise NotSupported(
            "a score by tower attention compares the attention that patches receive over a whole picture, but every layer of the vision "
            f"tower ({config.model_type}) attends within windows; use a cut with score 'density', which needs no tower"
        )
    return frozenset(layers)


def patch_order(tower: Any, grid: Tensor | None) -> Tensor | None:
    """Where the tower has the patches of the first visual token, of the second and so on: [P] int64; None: in this order already.

    `grid` [pictures, 3] holds the patches of each picture: time, height, width.
    """
    by_window, by_row, side = hasattr(tower, "window_size"), tower.config.model_type in ROW_BY_ROW, merge_side(tower)
    if not by_window and not by_row:
        return None
    if grid is None:
        raise NotSupported(
            f"a score by tower attention needs the {GRID} of the pictures to put the patches of its vision tower in order "
            f"({tower.config.model_type}), but get_image_features() was called without it; pass everything that the processor returned"
        )
    order = _from_windows(tower, grid) if by_window else torch.arange(int(grid.prod(1).sum()))
    return order[_squares(grid, side)] if by_row else order


def _from_windows(tower: Any, grid: Tensor) -> Tensor:
    """Where in the order of windows each patch stands [P]; as many as are merged before windows are made stay together."""
    index, _ = get_vision_window_index(grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)
    together = tower.spatial_merge_size**2
    return (index.argsort()[:, None].cpu() * together + torch.arange(together)).flatten()


def _squares(grid: Tensor, side: int) -> Tensor:
    """The patches of all pictures [P], numbered row by row, in the order of squares of `side` x `side`."""
    parts, first = [], 0
    for frames, height, width in grid.tolist():
        here = torch.arange(first, first + frames * height * width)
        parts.append(here.view(frames, height // side, side, width // side, side).transpose(2, 3).flatten())
        first += frames * height * width
    return torch.cat(parts)
