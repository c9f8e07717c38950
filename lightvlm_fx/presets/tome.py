"""ToMe (arXiv 2210.09461) in the vision tower, as a schedule."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.methods.combines.fold import Fold
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.token_scores.fold_keys import FoldKeys
from lightvlm_fx.presets.in_tower import survivors, tower_cuts
from lightvlm_fx.presets.shared import QUARTERS
from lightvlm_fx.schedule import Layer, Policy, Schedule

SURE = (
    "Read from the authors' code: even and odd places matched by the cosine of keys, mean over heads; means by size; log(size) in "
    "later attention. Ours: three blocks where theirs are all, order kept where theirs mixes it, and rotated keys in towers with "
    "rotary positions."
)


def tome(keep: Share = 0.5, layers: Sequence[Layer] = QUARTERS, positions: Policy = "input") -> Schedule:
    """ToMe (arXiv 2210.09461) in the vision tower: patches of like keys become one, which later attention counts by its size.

    The paper merges in every block, some each (`layers` names all of them then), and mixes the order of tokens; here it stays.
    """
    score = FoldKeys(folds=1, penalty=0.0)
    tower = tower_cuts(float(keep), layers, [score] * len(layers), Fold(louder=False), True)
    return Schedule(name="tome", tower=tower, cuts=(survivors(float(keep), positions),))
