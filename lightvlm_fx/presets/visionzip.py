"""VisionZip (arXiv 2412.04467), as a schedule."""

from __future__ import annotations

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.methods.combines.contextual import Contextual
from lightvlm_fx.methods.token_scores.salient_then_even import SalientThenEven
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Keep, Policy, Schedule

SURE = (
    "Read from the authors' code: what the tower attends to most stays, evenly spaced others become themselves plus the mean of what "
    "resembles them. Ours: the tower's last layer, where theirs is the last but one; no summary token stays; likeness and sums are of "
    "what the projector gives."
)


def visionzip(dominant: Keep = 0.25, contextual: Keep = 0.05, positions: Policy = "input") -> Schedule:
    """VisionZip (arXiv 2412.04467): what the vision tower attends to most, and evenly spaced others that take up what is dropped.

    Two shares of the picture or two counts; the paper's 64 tokens are dominant=54 (CLS among them, which we have not), contextual=10.
    """
    if type(dominant) is not type(contextual):
        raise ScheduleError(f"visionzip: dominant and contextual must be two shares or two counts, got {dominant} and {contextual}")
    if isinstance(dominant, float) and dominant + contextual > 1:
        raise ScheduleError(f"visionzip: dominant + contextual must be at most 1.0, the whole picture, got {dominant} + {contextual}")
    share = contextual / (dominant + contextual)
    return before("visionzip", dominant + contextual, SalientThenEven(even=share), Contextual(share=share), positions)
