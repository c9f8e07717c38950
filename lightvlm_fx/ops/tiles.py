"""Going over the pairs of tokens a few rows at a time, so that nothing as large as all pairs is ever held."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import SymInt, Tensor

from lightvlm_fx.compat import hint, settled

CELLS = 2**20  # numbers of a tile: 4 MiB of float32, which caches of processors hold
LEAST, MOST = 64, 256  # rows: with fewer, products mostly fetch their other side; with more, half of a square is less worth
ACCELERATOR_CELLS = 2**24  # 64 MiB: starting a kernel costs an accelerator more than computing both halves of a square
LARGEST_PART = 384  # rows of one of `parts`, half of which is the least where there are many


def parts(length: int, spare: int = 0) -> int:
    """Into how many equal tiles graphs of a symbolic length, of up to `length` rows, cut it: a power of two.

    Whatever a longer sequence is a multiple of, a shorter one is a multiple of too: what a cut leaves, rounded up, is no more than came.
    With `spare`, each tile could have so many rows more, and their number stayed the same.
    """
    return _power_of_two(length, LARGEST_PART - spare)


def _power_of_two(length: int, most: int) -> int:
    """The least power of two of equal pieces of `length` that are no longer than `most`."""
    return int(1 << max(0, -(-length // most) - 1).bit_length())


def tiles(like: Tensor, rows: int, width: int, first: int = 0, square: bool = True) -> Iterator[tuple[int, int]]:
    """Begin and end of each tile of the rows `first` to `rows`, where a row (of the whole batch and all heads) makes `width` numbers.

    They suit the device of `like`, and where rows meet each other (`square`) are not so large that much of a half is computed twice.
    Exported graphs hold every tile, so theirs are as large as those get. Where their length is symbolic, their number is that of the
    length they are traced at, the longest there is, and shorter sequences have smaller tiles.
    """
    count = settled(rows - first)
    if torch.compiler.is_exporting() and isinstance(count, SymInt):
        number = parts(hint(count))
        if not square:  # as few as hold no more than CELLS each: every tile is a graph's nodes
            number = min(number, _power_of_two(hint(count) * hint(width), CELLS))
        step = count // number
        yield from ((first + i * step, first + (i + 1) * step if i + 1 < number else rows) for i in range(number))
        return
    if torch.compiler.is_exporting():
        step = MOST if square else max(MOST, CELLS // max(hint(width), 1))
    elif like.device.type == "cpu":
        step = max(LEAST, CELLS // max(width, 1))
        step = min(MOST, step) if square else step
    else:
        step = max(LEAST, ACCELERATOR_CELLS // max(width, 1))
    for start in range(0, count, step):
        yield first + start, first + min(start + step, count)


def readable(x: Tensor) -> bool:
    """Whether the host may read values: not off an accelerator, which it would wait for, nor while a graph is exported."""
    return x.device.type == "cpu" and not torch.compiler.is_exporting()


def span(rows: Tensor, columns: Tensor) -> tuple[int, int]:
    """Begin and end of the `columns` [B, m] that hold tokens of the images of `rows` [B, n] (both segments); all, if not readable."""
    if not readable(rows) or not rows.shape[1]:
        return 0, columns.shape[1]
    first = torch.where(rows >= 0, rows, rows.new_full((), torch.iinfo(rows.dtype).max)).amin(1, keepdim=True)
    there = ((columns >= first) & (columns <= rows.amax(1, keepdim=True))).any(0).nonzero()
    return (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)


def alone(rows: Tensor, columns: Tensor) -> bool:
    """Whether the tokens of `rows` [B, n] and `columns` [B, m] (both segments) are all of the row's one image; False, if not readable."""
    if not readable(rows) or not rows.shape[1]:
        return False
    image = rows[:, :1]
    return bool(((image >= 0) & (rows == image).all(1, keepdim=True) & (columns == image).all(1, keepdim=True)).all())


def wanted(which: Tensor) -> Tensor | None:
    """Places [B, n] of the tokens that `which` [B, S] marks, in order; rows that have fewer are filled with others. None, for all,
    if not readable.
    """
    if not readable(which):
        return None
    return torch.sort(which.int(), dim=1, descending=True, stable=True).indices[:, : int(which.sum(1).max())]


def pick(x: Tensor, rows: Tensor | None) -> Tensor:
    """The tokens of x, [B, S] or [B, S, D], at `rows` [B, n] (None: all)."""
    if rows is None:
        return x
    if x.ndim == 2:
        return x.gather(1, rows)
    flat = (rows + torch.arange(rows.shape[0], device=rows.device).unsqueeze(1) * x.shape[1]).flatten()
    return x.flatten(0, 1).index_select(0, flat).view(*rows.shape, x.shape[2])  # whole rows: a gather would read an index for each number
