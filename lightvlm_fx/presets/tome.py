"""ToMe (arXiv 2210.09461) in the vision tower, as a schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightvlm_fx.methods.combines.fold import Fold
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.token_scores.fold_keys import FoldKeys
from lightvlm_fx.presets.in_tower import survivors, tower_cuts
from lightvlm_fx.presets.shared import QUARTERS, falling
from lightvlm_fx.schedule import Layer, Policy, Schedule

SURE = (
    "Read from the authors' code: even and odd places matched by the cosine of keys, mean over heads; means by size; log(size) in "
    "later attention. Ours: three blocks where theirs are all, order kept where theirs mixes it, and rotated keys in towers with "
    "rotary positions."
)


def tome(keep: Share = 0.5, layers: Sequence[Layer] = QUARTERS, positions: Policy = "input") -> Schedule:
    """ToMe (arXiv 2210.09461) in the vision tower: patches of like keys become one, which later attention counts by its size.

    The paper merges in every block, some each (`layers` names all of them then), and mixes the order of tokens; here it stays. Where a
    cut leaves less than half, pairs are merged more than once in it, so that no patch is lost; the paper halves at most.
    """
    scores = [FoldKeys(folds=_folds(left), penalty=0.0) for left in falling(float(keep), layers)]
    tower = tower_cuts(float(keep), layers, scores, Fold(louder=False), True)
    return Schedule(name="tome", tower=tower, cuts=(survivors(float(keep), positions),))


def _folds(keep: float) -> int:
    """How often pairs are merged at most until the share `keep` is left, however it rounds: one leaves half of what arrives, rounded up."""
    return max(1, math.ceil(math.log2(1.5 / keep - 1)))  # of 2^folds + 1 tokens 2 are left, and share_of(keep) is 2 from 1.5 on
