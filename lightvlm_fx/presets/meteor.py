"""METEOR (arXiv 2507.20842), the third of its stages, as a schedule."""

from __future__ import annotations

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.combines.prune import Prune
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.token_scores.salience import Salience
from lightvlm_fx.methods.token_scores.unlike_mean import UnlikeMean
from lightvlm_fx.methods.token_scores.visual_heads import Rate, VisualHeads
from lightvlm_fx.presets.in_tower import after_tower
from lightvlm_fx.schedule import Cut, Keep, Layer, Schedule

SURE = (
    "No code is public; from a third-party summary: heads chosen by their attention to the picture, a count that grows with it, two "
    "cuts in the tower. Ours: layer, number of heads, rate and shares; equal factors at the two cuts, where theirs share a budget by "
    "the ranks of each tower's feature maps, measured beforehand; the stage across several towers has nothing to act on here."
)


def meteor(keep: Keep = 0.25, layer: Layer = 0.25, heads: Positive = 8, rate: Rate = 0.0, tower: Share = 1.0) -> Schedule:
    """METEOR (arXiv 2507.20842), the third of its stages: the attention of the `heads` that look at the picture most.

    With `rate`, as many tokens stay as the prompt asks for, int(rate * tokens * the mean of what those heads pay the picture), and `keep`
    is a ceiling, as many as are computed. `tower` is what the first stage leaves, two cuts after a third and two thirds of the vision
    tower: what resembles its picture's mean leaves first, then what the tower attends to least; `keep` is then of what they left.

    The paper trains its towers with that. Its second stage prunes tokens of several towers that say the same; here there is nothing to
    prune across: of the models of transformers DeepSeek-VL's hybrid has two towers, and joins them by channel, one token a place. Layer,
    heads, rate and shares are not public: these are ours. rate=0 as its constant is unknown, and what is computed does not shrink with
    it; tower=1 as its towers are trained for the cuts, and not every model's can be cut.
    """
    made = Schedule(name="meteor", cuts=(Cut(layer=layer, keep=keep, score=VisualHeads(heads=heads, rate=rate)),))
    return after_tower(made, tower, [1 / 3, 2 / 3], [UnlikeMean(), Salience()], Prune())
