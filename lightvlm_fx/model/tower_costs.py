"""FLOPs of a vision tower, with and without cuts inside it."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightvlm_fx.methods.base import Picture
from lightvlm_fx.methods.counts.lattice import Lattice
from lightvlm_fx.model.families.patch_order import merge_side, whole_picture_layers
from lightvlm_fx.model.locate import has_tower, tower_blocks, used_blocks, vision_tower
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.shares import share_of


def tower_flops(model: Any, pictures: list[int], schedule: Schedule) -> tuple[float, float]:
    """FLOPs of the blocks for pictures of so many visual tokens each, under `schedule` and without it.

    Zeros where it is not known how many patches become a token: pictures in tiles of another size, pooling, pixel shuffle.
    """
    if not has_tower(model) or (blocks := tower_blocks(tower := vision_tower(model))) is None:
        return 0.0, 0.0
    config, together = tower.config, merge_side(tower) ** 2
    square = (config.image_size // config.patch_size) ** 2 if isinstance(getattr(config, "image_size", None), int) else None
    packed = hasattr(tower, "merger")
    if not packed and any(n != square for n in pictures):
        return 0.0, 0.0
    depth, whole = used_blocks(model), whole_picture_layers(tower)
    cuts = schedule.in_tower(depth)
    window = int(getattr(config, "window_size", 0) // config.patch_size) ** 2
    reduced = full = 0.0
    for tokens in pictures:
        left = tokens if schedule.downsample is None else Lattice(side=schedule.downsample).tokens(Picture(tokens), tokens)
        for number in range(depth):
            before, mlp, pair = _costs(blocks[number])
            near = window if whole is not None and number not in whole else None
            patches, kept = left * together, left * together
            if number in cuts:
                left = share_of(cuts[number].keep, tokens)
                kept = left * together
            reduced += float(before * patches + pair * patches * (near or patches) + mlp * kept)
            every = tokens * together
            full += float((before + mlp) * every + pair * every * (near or every))
    return reduced, full


def _costs(block: nn.Module) -> tuple[float, float, float]:
    """FLOPs of a block: of its attention's matrices a patch, of its MLP's, and a pair of patches."""
    matrices = {name: float(p.numel()) for name, p in block.named_parameters() if p.ndim >= 2}
    attention = sum(n for name, n in matrices.items() if "attn" in name or "attention" in name)
    width = next(p.numel() for p in block.parameters() if p.ndim == 1)  # of a norm or a bias: configs say it in several ways
    return 2.0 * attention, 2.0 * (sum(matrices.values()) - attention), 4.0 * width
