"""FasterVLM (arXiv 2412.01818, version 1), as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.token_scores.salience import Salience
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Keep, Policy, Schedule

SURE = (
    "Read from the authors' code: the mean over heads of what the tower's summary token attends to, a fixed count, the rest dropped, "
    "survivors in order and renumbered. Ours: 0.25, as theirs is given for each run (their abstract has 0.05); the tower's last layer, "
    "where theirs is the last but one of LLaVA's; what all patches attend to, where a tower has no summary token."
)


def fastervlm(keep: Keep = 0.25, positions: Policy = "input") -> Schedule:
    """FasterVLM (arXiv 2412.01818, version 1): before the decoder, what the vision tower's summary token attends to most.

    `vispruner` is the same paper's later version.
    """
    return before("fastervlm", keep, Salience(), positions=positions)
