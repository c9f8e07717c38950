"""FOLDER (arXiv 2501.02430), as a schedule."""

from __future__ import annotations

import math

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.frozen import Number
from lightvlm_fx.methods.combines.fold import Fold as FoldedMean
from lightvlm_fx.methods.token_scores.fold import Fold
from lightvlm_fx.methods.token_scores.fold_keys import FoldKeys
from lightvlm_fx.presets.in_tower import survivors
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Keep, Policy, Schedule, TowerCut

SURE = (
    "Read from the authors' code, both versions: even and odd places matched and folded until few enough are left, order kept, 1 + "
    "log(size) in the simple one, the penalty of 5 in the full one. Ours: a share where theirs is a number a layer (1/3 is their 384 "
    "of 576 removed), and rotated keys in towers with rotary positions."
)


def folder(
    keep: Keep = 1 / 3, louder: bool = True, positions: Policy = "input", tower: bool = False, penalty: Number = 5.0
) -> Schedule:
    """FOLDER (arXiv 2501.02430), its simple version: what the projector gives is merged in pairs, again and again, down to `keep`.

    With `tower`, the full one: in the last block of the vision tower that is used, by the keys of its attention, less `penalty` times 100
    the attention that a patch receives; a mean by size, and later attention counts sizes.
    """
    if tower and not isinstance(keep, float):
        raise ScheduleError(f"folder: keep must be a share with tower=True, got {keep}")
    folds = math.ceil(-math.log2(keep)) + 1 if isinstance(keep, float) else 16  # as many as any picture's rounding can need
    if tower and isinstance(keep, float):
        score, merged = FoldKeys(folds=folds, penalty=penalty), FoldedMean(louder=False)
        cut = TowerCut(layer=-1, keep=keep, score=score, combine=merged, proportional=True)
        return Schedule(name="folder", tower=(cut,), cuts=(survivors(keep, positions),))
    return before("folder", keep, Fold(folds=folds), FoldedMean(louder=louder), positions)
