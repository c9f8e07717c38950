"""Where the pictures of a row stand among its tokens. NumPy only: an artifact's runner asks it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class VisualMarks:
    """How a model marks visual tokens in a prompt."""

    ids: Sequence[int]
    per_image: int | None = None  # tokens, where all images have as many
    ends_last_row: bool | None = None  # where pictures come as rows: is there a token that ends the last one?


def images_of(ids: NDArray[np.int64], marks: VisualMarks) -> list[NDArray[np.int64]]:
    """Token places of each image of one row, ids [S]."""
    visual = np.isin(ids, marks.ids)
    places = np.flatnonzero(visual)
    if not len(places):
        return []
    splits = np.flatnonzero((np.diff(places) > 1) | (np.diff(ids[places]) != 0)) + 1
    runs = np.split(places, splits)
    if marks.ends_last_row is not None:
        runs = _join_rows(ids, runs, marks.ends_last_row)
    fixed = marks.per_image
    out = []
    for run in runs:
        whole = fixed and len(run) > fixed and len(run) % fixed == 0
        out += np.split(run, len(run) // fixed) if whole and fixed else [run]
    return out


def _join_rows(ids: NDArray[np.int64], runs: list[NDArray[np.int64]], ends_last_row: bool) -> list[NDArray[np.int64]]:
    """Join runs one token apart, unless that token ends a picture: the one after the very last run does."""
    last = int(runs[-1][-1]) + 1
    end = int(ids[last]) if ends_last_row and last < len(ids) else None
    joined = [runs[0]]
    for run in runs[1:]:
        after = joined[-1][-1] + 1
        if run[0] == after + 1 and ids[after] != end:
            joined[-1] = np.concatenate([joined[-1], run])
        else:
            joined.append(run)
    return joined
