"""Score: which tokens cuts inside the vision tower left."""

from __future__ import annotations

from lightvlm_fx.methods.token_scores.salience import Salience


class Survived(Salience):
    """1 for what left the tower, 0 for what was dropped in it or became part of another token: a schedule with `tower` begins with it."""

    name = "survived"
    source = "ours"
    after_tower_cuts = True
