"""What a vision stage is fed with, from what a processor returned: all that depends on the sizes of pictures, in NumPy alone.

How a model takes pictures stands in the manifest, one of four kinds (`vision` of a bucket):

    tiles    squares of one size, each of which becomes `tokens` visual tokens; with `mask`, which pixels of them are real
    patches  pictures of any shape as patches one after the other, with a grid of heights and widths (Qwen-VL)
    anyres   a small whole picture and a grid of tiles, whose padding is cut off and whose rows end in a learned token (LLaVA-NeXT)
    fixed    only pictures of the example's sizes: the stage holds everything else as constants

Stages of a static target have `most` slots for tiles or patches, filled up with zeros; the features of those stand last, and are not read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightvlm_fx.errors import InputError
from lightvlm_fx.shares import share_of

Array = NDArray[Any]
Feed = dict[str, Array]


def prepare(how: dict[str, Any], pictures: Feed) -> tuple[Feed, int]:
    """The inputs of the vision stage that `how` describes, and the number of visual tokens that it makes of these `pictures`.

    Raises InputError for pictures of another form.
    """
    return {"tiles": _tiles, "patches": _patches, "anyres": _anyres}[how["kind"]](how, pictures)


def grids(how: dict[str, Any], pictures: Feed) -> Array:
    """Height and width of each picture in visual tokens [n, 2], of a model that numbers them in planes."""
    sizes = _of_still(pictures[how["name"]])
    return np.asarray(sizes // how["merge"])


def filled(x: Array, slots: int, by: Any = 0) -> Array:
    """`x` with `slots` rows, those that it lacks filled with `by`."""
    return np.concatenate([x, np.full((slots - len(x), *x.shape[1:]), by, x.dtype)]) if len(x) < slots else x


def _slots(how: dict[str, Any], needed: int, what: str) -> int:
    if how["most"] and needed > how["most"]:
        raise InputError(f"the pictures make {needed} {what}, the vision stage was made for {how['most']}; export with larger pictures")
    return int(how["most"] or needed)


def _tiles(how: dict[str, Any], pictures: Feed) -> tuple[Feed, int]:
    """pixel_values [..., C, H, W]; where models leave out tiles that are all zero, so does this."""
    shape, mask = how["shape"], how.get("mask")
    pixels = pictures["pixel_values"]
    if list(pixels.shape[-3:]) != shape:
        raise InputError(f"pixel_values hold pictures of the shape {list(pixels.shape[-3:])}, the vision stage takes {shape}")
    pixels = pixels.reshape(-1, *shape)
    there = pixels.reshape(len(pixels), -1).any(1) if how["drops_empty"] else np.ones(len(pixels), bool)
    if mask and mask in pictures and pictures[mask].size != len(pixels) * shape[1] * shape[2]:
        raise InputError(f"{mask} {list(pictures[mask].shape)} does not say of each of {len(pixels)} tiles of {shape} what is real")
    pixels, count = pixels[there], int(there.sum())
    slots = _slots(how, count, "tiles")
    feed = {"pixel_values": filled(pixels, slots)}
    if mask:
        size = how["patch"]
        real = pictures.get(mask)
        real = np.ones((count, *shape[1:]), bool) if real is None else real.reshape(-1, *shape[1:])[there].astype(bool)
        height, width = (n // size for n in shape[1:])
        real = real[:, : height * size, : width * size].reshape(count, height, size, width, size)
        feed["patch_mask"] = filled(real.any((2, 4)), slots, True)
    return feed, count * how["tokens"]


def _of_still(sizes: Array) -> Array:
    """Heights and widths [n, 2] in patches, of grids [n, 3] of one frame."""
    if sizes.ndim != 2 or sizes.shape[1] != 3 or (sizes[:, 0] != 1).any():
        raise InputError(f"an artifact takes still pictures, one frame each, got grids of (time, height, width) {sizes.tolist()}")
    return np.asarray(sizes[:, 1:], dtype=np.int64)


def _patches(how: dict[str, Any], pictures: Feed) -> tuple[Feed, int]:
    """pixel_values [N, W], one patch a row, in the order of squares of `merge` x `merge` that become one token."""
    merge, pixels = how["merge"], pictures["pixel_values"]
    if how["grid"] not in pictures:
        raise InputError(f"pixel_values came without {how['grid']}; pass everything that the processor returned")
    sizes = _of_still(pictures[how["grid"]])
    counts = sizes.prod(1)
    if not len(sizes) or (sizes < 1).any() or (sizes % merge).any() or (sizes > 2**20).any():
        raise InputError(f"{how['grid']} must hold heights and widths that are multiples of {merge}, got {sizes.tolist()}")
    if int(counts.sum()) != len(pixels) or pixels.shape[1:] != (how["width"],):
        raise InputError(f"pixel_values {list(pixels.shape)} are not the patches [{int(counts.sum())}, {how['width']}] of {how['grid']}")
    if int(counts.sum()) < how.get("least", 0) * merge**2:
        raise InputError(f"cuts inside the vision tower need {how['least']} visual tokens, got {int(counts.sum()) // merge**2}; "
                         "use larger pictures, or a schedule without such cuts")  # fmt: skip
    slots = _slots(how, len(pixels), "patches")
    place = np.concatenate([_in_squares(h, w, merge) for h, w in sizes.tolist()])
    feed = {"pixel_values": filled(pixels, slots), "position_ids": filled(place, slots)}
    spans = {"picture": counts}
    if how["window"]:
        index, lengths = _windows(sizes // merge, how["window"])
        feed["window_index"] = np.concatenate([index, np.arange(len(index), slots // merge**2)])
        spans["window"] = lengths * merge**2
    for name, lengths in spans.items():
        if how["most"]:
            feed[f"{name}_of_patch"] = filled(np.repeat(np.arange(len(lengths)), lengths), slots, -1)
        else:
            feed |= _blocks(name, lengths, how["window"] ** 2 * merge**2 if name == "window" else int(lengths.max()))
    if how["table"]:
        taps, weights = _resampled(place, np.repeat(sizes, counts, 0), how["table"])
        feed |= {"interp_indices": filled(taps, slots), "interp_weights": filled(weights, slots)}
    for i, keep in enumerate(how.get("left", ())):  # of cuts inside the tower
        left = np.array([share_of(keep, int(n)) for n in counts // merge**2])
        feed |= {f"left_{i}": left, "picture_of_unit": np.repeat(np.arange(len(counts)), counts // merge**2)}
        feed |= _blocks(f"left_{i}", left * merge**2, int(left.max()) * merge**2)
    return feed, len(pixels) // merge**2


def _in_squares(height: int, width: int, merge: int) -> Array:
    """Row and column [h * w, 2] of each patch, square by square."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    order = (height // merge, merge, width // merge, merge)
    return np.stack([x.reshape(order).transpose(0, 2, 1, 3).ravel() for x in (rows, columns)], 1)


def _windows(sizes: Array, side: int) -> tuple[Array, Array]:
    """The tokens of all pictures by windows of `side` x `side`, cut off at a picture's edge, and how many each window has."""
    index, lengths, first = [], [], 0
    for height, width in sizes.tolist():
        here = first + np.arange(height * width).reshape(height, width)
        for top in range(0, height, side):
            for left in range(0, width, side):
                window = here[top : top + side, left : left + side].ravel()
                index.append(window)
                lengths.append(len(window))
        first += height * width
    return np.concatenate(index), np.array(lengths)


def _blocks(name: str, lengths: Array, width: int) -> Feed:
    """Patches that attend to each other, block by block [n, width] (-1: none), and where in them each patch stands [N]."""
    places = np.arange(width)
    starts = lengths.cumsum() - lengths
    block = np.where(places < lengths[:, None], starts[:, None] + places, -1)
    back = np.flatnonzero(block.ravel() >= 0)
    return {f"{name}_blocks": block, f"{name}_back": back}


def _resampled(place: Array, sizes: Array, side: int) -> tuple[Array, Array]:
    """Where each patch lies in a learned table of side x side positions: four entries [N, 4] and their weights, corners aligned."""
    at = place.astype(np.float32) * np.float32(side - 1) / np.maximum(sizes - 1, 1).astype(np.float32)
    low = np.floor(at)
    taps = low.astype(np.int64)[..., None] + np.arange(2)  # [N, 2, 2]: axis, neighbour
    weights = np.maximum(1 - np.abs(at[..., None] - low[..., None] - np.arange(2, dtype=np.float32)), 0).astype(np.float32)
    taps = taps.clip(0, side - 1)
    both = taps[:, 0, :, None] * side + taps[:, 1, None, :]
    return both.reshape(-1, 4), (weights[:, 0, :, None] * weights[:, 1, None, :]).reshape(-1, 4)


def _anyres(how: dict[str, Any], pictures: Feed) -> tuple[Feed, int]:
    """pixel_values [pictures, tiles, C, H, W], of which each has as many tiles as its size, in image_sizes [pictures, 2], leads to."""
    shape, pixels = how["shape"], pictures["pixel_values"]
    if pixels.ndim != 5 or list(pixels.shape[2:]) != shape or len(pixels) != len(pictures.get("image_sizes", ())):
        raise InputError(f"pixel_values {list(pixels.shape)} with image_sizes are not pictures in tiles of {shape}; "
                         "pass everything that the processor returned")  # fmt: skip
    if pictures["image_sizes"].shape[1:] != (2,) or not len(pixels) or (pictures["image_sizes"] < 1).any():
        raise InputError(f"image_sizes must hold a height and a width of each picture, got {pictures['image_sizes'].tolist()}")
    tiles, index, first = [], [], 0
    for picture, size in zip(pixels, pictures["image_sizes"].tolist(), strict=True):
        rows, columns = (n // shape[1] for n in _best(size, how["sizes"]))
        count = 1 + rows * columns
        tiles.append(picture[:count])
        index.append(first + _unpadded(size, rows, columns, how["side"]))
        first += count * how["side"] ** 2
    every, order = np.concatenate(tiles), np.concatenate(index)
    order = np.where(order < 0, -1, order)
    slots = _slots(how, len(every), "tiles")
    return {"pixel_values": filled(every, slots), "feature_index": filled(order, _slots(how | {"most": how["most_tokens"]}, len(order),
                                                                                       "visual tokens"))}, len(order)  # fmt: skip


def _best(size: list[int], known: list[list[int]]) -> list[int]:
    """The known size that keeps most of a picture, and of those the one that wastes least: LLaVA-NeXT's rule."""

    def worth(fit: list[int]) -> tuple[int, int]:
        scale = min(fit[1] / size[1], fit[0] / size[0])
        kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return kept, kept - fit[0] * fit[1]

    return max(known, key=worth)


NEWLINE = -(2**40)  # stays negative whatever is added


def _unpadded(size: list[int], rows: int, columns: int, side: int) -> Array:
    """Of a picture that is one tile and then rows x columns tiles of side x side tokens, the tokens in their order.

    Those that only padding made are left out, and each line of tokens ends in NEWLINE.
    """
    grid = np.arange(rows * columns * side**2).reshape(rows, columns, side, side).transpose(0, 2, 1, 3).reshape(rows * side, -1)
    (height, width), (most_high, most_wide) = size, grid.shape
    if width / height > most_wide / most_high:
        spare = (most_high - int(round(height * (most_wide / width), 7))) // 2
        grid = grid[spare : most_high - spare]
    else:
        spare = (most_wide - int(round(width * (most_high / height), 7))) // 2
        grid = grid[:, spare : most_wide - spare]
    lines = np.concatenate([side**2 + grid, np.full((len(grid), 1), NEWLINE)], 1)
    return np.concatenate([np.arange(side**2), lines.ravel()])
