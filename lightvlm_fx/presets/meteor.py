"""METEOR (arXiv 2507.20842), as a schedule."""

from __future__ import annotations

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.combines.prune import Prune
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.token_scores.salience import Salience
from lightvlm_fx.methods.token_scores.unlike_mean import UnlikeMean
from lightvlm_fx.methods.token_scores.unlike_others import UnlikeOthers
from lightvlm_fx.methods.token_scores.visual_heads import Rate, VisualHeads
from lightvlm_fx.presets.in_tower import after_tower
from lightvlm_fx.schedule import Cut, Keep, Layer, Schedule

SURE = (
    "No code is public; from a third-party summary: heads chosen by their attention to the picture, a count that grows with it, two "
    "cuts in the tower, tokens of several encoders pruned by the sum of their similarity. Ours: layer, number of heads, rate and shares; "
    "equal factors at the two cuts in the tower, where theirs share a budget by the ranks of each tower's feature maps, measured "
    "beforehand; pictures of a prompt where they have encoders of a picture, each keeping a share of its own, where they keep the best "
    "of all."
)
FIRST = 1e-3  # of any depth, the layer after layer 0: before that stands what leaves in the tower


def meteor(
    keep: Keep = 0.25, layer: Layer = 0.25, heads: Positive = 8, rate: Rate = 0.0, tower: Share = 1.0, across: Share = 1.0
) -> Schedule:
    """METEOR (arXiv 2507.20842), of its three stages by default the third: the attention of the `heads` that look at the picture most.

    With `rate`, as many tokens stay as the prompt asks for, int(rate * tokens * the mean of what those heads pay the picture), and `keep`
    is a ceiling, as many as are computed. `tower` is what the first stage leaves, two cuts after a third and two thirds of the vision
    tower: what resembles its picture's mean leaves first, then what the tower attends to least. `across` is what the second stage leaves
    of that, before the decoder (with `tower`, before layer 1): what says the same as the row's other pictures leaves, or beside none,
    the same as its own. Each is a share of what the stage before left.

    The paper trains its towers with that, and has several: the second stage looks for what they say twice. Of the models of transformers
    DeepSeek-VL's hybrid alone has two, and joins them by channel, one token a place, so nothing there can leave alone; pictures and tiles
    of a prompt are what stands side by side. Layer, heads, rate and shares are not public: these are ours. rate=0 as its constant is
    unknown, and what is computed does not shrink with it; tower=1 as its towers are trained for the cuts, and not every model's can be
    cut; across=1 as a prompt mostly has one picture.
    """
    left = keep * across if isinstance(keep, float) else keep
    if across < 1 and not isinstance(keep, float):
        raise ScheduleError(f"meteor: keep must be a share beside across={across}, which it is a share of")
    at = 0 if tower == 1 else 1 if isinstance(layer, int) else FIRST
    second = (Cut(layer=at, keep=across, score=UnlikeOthers()),) if across < 1 else ()
    made = Schedule(name="meteor", cuts=(*second, Cut(layer=layer, keep=left, score=VisualHeads(heads=heads, rate=rate))))
    return after_tower(made, tower, [1 / 3, 2 / 3], [UnlikeMean(), Salience()], Prune())
