"""FEATHER (arXiv 2412.13180), as a schedule."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.counts.grid_and_share import GridAndShare
from lightvlm_fx.methods.counts.share_of_arriving import ShareOfArriving
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.token_scores.grid_last_query import GridLastQuery
from lightvlm_fx.methods.token_scores.last_query import LastQuery
from lightvlm_fx.schedule import Cut, Layer, Schedule

SURE = (
    "Read from the authors' code: the score without RoPE over the picture's keys, the grid of every third row and column, two cuts "
    "and their counts, positions kept. Ours: layers as shares of the depth, and grids of any shape, where theirs are square."
)


def feather(layers: Sequence[Layer] = (0.25, 0.5), keep: Share = 0.3, stride: Positive = 3) -> Schedule:
    """FEATHER (arXiv 2412.13180): what the last prompt token attends to, scored without RoPE, and a grid of the picture; twice.

    Before the first layer of `layers`, every `stride`-th row and column stay, and int(keep * tokens) of the others; before the second,
    int(keep^2 * those that arrive) by the score alone. The paper's layers are 8 and 16 of 32.
    """
    if len(layers) != 2:
        raise ScheduleError(f"feather: layers must name two layers, got {tuple(layers)}")
    if keep**2 == 0:
        raise ScheduleError(f"feather: keep={keep} is so small that keep^2 is none at all; give a share above 1e-160")
    first = Cut(layer=layers[0], keep=GridAndShare(stride=stride, share=keep), score=GridLastQuery(stride=stride))
    second = Cut(layer=layers[1], keep=ShareOfArriving(share=keep**2), score=LastQuery(rope=False, image_softmax=True))
    return Schedule(name="feather", cuts=(first, second))
