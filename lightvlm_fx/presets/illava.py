"""ILLaVA (arXiv 2412.06263), its code of 2026, as a schedule."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.combines.absorb import Absorb
from lightvlm_fx.methods.combines.recover import Centres
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.token_scores.log_sum_exp import LogSumExp
from lightvlm_fx.presets.in_tower import after_tower
from lightvlm_fx.presets.shared import pyramid
from lightvlm_fx.schedule import Keep, Layer, Schedule

SURE = (
    "Read from the authors' code of 2026: log-sum-exp as the score, 0.85 each at layers 15, 17, 19 and 21 of 36, centres and what "
    "they absorb; the paper, by a third-party summary, has other layers and another merge. Ours: layers as shares of the depth; "
    "in the tower the attention of the same block, where theirs is of the block before; and where several patches become one token "
    "there (Qwen's 2x2), log-sum-exp of their mean query and mean keys."
)


def illava(
    keep: Keep = 0.85**4,
    layers: Sequence[Layer] = (15 / 36, 17 / 36, 19 / 36, 21 / 36),
    centres: Centres = 0.05,
    group: Positive = 5,
    tower: Share = 1.0,
) -> Schedule:
    """ILLaVA (arXiv 2412.06263), its code of 2026: by log-sum-exp; a few centres absorb what is most like them.

    Every cut leaves the same share of what arrives: 0.85 at layers 15, 17, 19 and 21 of Qwen3-VL's 36; in shallow decoders, where such
    shares of the depth fall together, in layers of their own beside them. `tower` is what four cuts of the vision tower leave before
    (0.9**4 in that code, in blocks 5 to 8 of 27), by this block's attention, where the source's is that of the block before; `keep` is
    then of what they left.
    """
    absorb = Absorb(centres=centres, group=group)
    made = pyramid("illava", keep, layers, score=LogSumExp(), combine=absorb)
    return after_tower(made, tower, [x / 27 for x in (5, 6, 7, 8)], [LogSumExp()] * 4, absorb)
