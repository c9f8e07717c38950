"""CDPruner (arXiv 2506.10967), as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.token_scores.determinant import Determinant
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Keep, Policy, Schedule

SURE = (
    "By our notes, checked again in November 2026: the kernel, the greedy pick, and the sign, by which relevance falls with the "
    "likeness to the text. Ours: relevance is of the question's embeddings and scaled within each picture; theirs is CLIP's "
    "image-text cosine."
)


def cdpruner(keep: Keep = 0.1, negated: bool = True, positions: Policy = "input") -> Schedule:
    """CDPruner (arXiv 2506.10967): tokens relevant to the question and unlike each other, by a determinantal point process.

    Relevance is of the question's embeddings: these models have no text tower, which the paper's is of.
    """
    return before("cdpruner", keep, Determinant(negated=negated), positions=positions)
