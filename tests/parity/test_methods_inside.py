"""Tier 5: published cuts inside the decoder, each against a short, plain, independent reference (see test_methods.py)."""

import math

import pytest
import torch
from references import CASES, FAMILIES, last_query, run_reference, unit

from lightvlm_fx.errors import LightVLMError
from lightvlm_fx.schedule import Schedule

EXACT = 1e-5  # of the largest logit
cases = pytest.mark.parametrize("case", CASES)
families = pytest.mark.parametrize("family", FAMILIES)
PLAIN = ("llava", "internvl")  # one position a token, which can be renumbered


def best(scores, count):
    """Places of the `count` highest, rising; ties go to the earlier one."""
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def rounded(n, share):
    return max(1, math.floor(n * share + 0.5))


# --- PyramidDrop -----------------------------------------------------------------------------------------


@cases
@families
def test_pyramiddrop_ranks_by_the_layer_behind_the_cut(family, case):
    positions = "compact" if family in PLAIN else "keep"
    keep = {1: 0.5, 3: 0.2}
    schedule = Schedule.preset("pyramiddrop", layers=tuple(keep), keep=tuple(keep.values()), positions=positions, ahead=True)

    def rule(seen):
        scores = last_query(seen, over_images=False, layer=seen.layer)
        return [best(s, rounded(n, keep[seen.layer])) for s, n in zip(scores, seen.sizes, strict=True)]

    run_reference(family, case, schedule, dict.fromkeys(keep, rule), EXACT, renumber=tuple(keep) if positions == "compact" else ())


def test_pyramiddrop_renumbers_no_position_triples():
    schedule = Schedule.preset("pyramiddrop", layers=(1, 2, 3))
    with pytest.raises(LightVLMError, match="M-RoPE triples; use positions=keep"):
        run_reference("qwen2_5_vl", "one picture", schedule, {}, EXACT)
