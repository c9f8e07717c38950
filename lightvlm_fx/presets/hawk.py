"""HAWK (arXiv 2604.07812), as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.token_scores.weighted_heads import WeightedHeads, Weights
from lightvlm_fx.schedule import Cut, Keep, Layer, Schedule

SURE = (
    "Read from the authors' code: the first layer's projections without RoPE, the mean over the text, heads weighed. Ours: equal "
    "weights, as theirs are measured for each model; the text is all that lies after the pictures; and a share is rounded as any share "
    "here, halves up, where theirs is rounded down."
)


def hawk(keep: Keep = 0.2, layer: Layer = 0, weights: Weights = ()) -> Schedule:
    """HAWK (arXiv 2604.07812): before the decoder, what the text asks for by its first layer's projections, without RoPE.

    `weights` says what each head is worth, which the paper measures for each model; without, all are worth the same.
    """
    return Schedule(name="hawk", cuts=(Cut(layer=layer, keep=keep, score=WeightedHeads(weights=weights)),))
