"""PruMerge and PruMerge+ (arXiv 2403.15388), as schedules."""

from __future__ import annotations

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.combines.neighbours import Neighbours
from lightvlm_fx.methods.options import Part
from lightvlm_fx.methods.token_scores.even_then_salient import EvenThenSalient
from lightvlm_fx.methods.token_scores.salience import Salience
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Keep, Policy, Schedule

SURE = (
    "Read from the authors' code: 32 nearest by cosine, added times their attention; one token of all that is dropped; 1/8 as the "
    "fixed share; in prumerge+ every n-th token beside them. Ours: a fixed count where the paper counts outliers; attention is the "
    "mean of the heads', theirs one product over all; features and keys are what the projector gives."
)


def prumerge(keep: Keep = 0.125, group: Positive = 32, extra: bool = True, positions: Policy = "input") -> Schedule:
    """PruMerge (arXiv 2403.15388), with a fixed count: what the vision tower attends to most, each with its neighbours added.

    The paper's count is that of each picture's outliers, which no graph of a fixed size can have; 1/8 is its repository's fixed ratio.
    `lightvlm.outlier_share(model, inputs)` is the mean of the paper's counts over some pictures, for `keep`. `group` stays a count, the
    source's: a graph for pictures of every size has one. In a picture of fewer tokens, all others are neighbours.
    """
    return before("prumerge", keep, Salience(), Neighbours(group=group, extra=extra), positions)


def prumerge_plus(
    keep: Keep = 0.25, even: Part = 0.5, group: Positive = 32, extra: bool = True, positions: Policy = "input"
) -> Schedule:
    """PruMerge+ (arXiv 2403.15388), with a fixed count: as `prumerge`, and `even` of what stays is spread evenly over the picture."""
    return before("prumerge+", keep, EvenThenSalient(even=even), Neighbours(group=group, extra=extra), positions)
