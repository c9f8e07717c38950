"""Baseline: smaller pictures (VTC-Bench), as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.counts.lattice import Lattice
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.token_scores.survived import Survived
from lightvlm_fx.schedule import Cut, Policy, Schedule

SURE = (
    "A baseline: the picture is resized before the tower. Ours: bicubic and antialiased, the tower's table of positions interpolated as "
    "transformers does it, and a prompt that keeps its placeholders until the first layer."
)


def downsample(side: Share = 0.5, positions: Policy = "input") -> Schedule:
    """Baseline (VTC-Bench, arXiv 2510.07143): pictures have `side` of their height and width before the vision tower.

    The tower costs less, too. For towers that take tiles of one size, as LLaVA's and InternVL's: processor and prompt stay as they are.
    Where a tower takes pictures of every size, as the Qwen-VL families' do, bound their pixels in the processor instead (docs/faq.md);
    such models are refused. A model that saw one size in training can lose much by it.
    """
    cut = Cut(layer=0, keep=Lattice(side=side), score=Survived(), positions=positions)
    return Schedule(name="downsample", downsample=side, cuts=(cut,))
