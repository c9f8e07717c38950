"""SCoRe (CVPR 2026, by a third-party note), as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.options import Power
from lightvlm_fx.methods.token_scores.salient_far_apart import SalientFarApart
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Keep, Policy, Schedule

SURE = (
    "Known from a third-party note alone: the first pick, distance times salience^0.8, a fixed count. Ours: the pick is over what the "
    "projector gives; in the note it comes before the projector."
)


def score(keep: Keep = 0.22, power: Power = 0.8, positions: Policy = "input") -> Schedule:
    """SCoRe (CVPR 2026, by a third-party note): as DivPrune (arXiv 2503.02175), distances weighed by what the vision tower attends to."""
    return before("score", keep, SalientFarApart(power=power), positions=positions)
