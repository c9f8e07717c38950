"""Presets that reduce between the layers of the decoder."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.combines.absorb import Absorb
from lightvlm_fx.methods.combines.prune import Prune
from lightvlm_fx.methods.combines.recover import Centres
from lightvlm_fx.methods.counts.grid_and_share import GridAndShare
from lightvlm_fx.methods.counts.share_of_arriving import ShareOfArriving
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.registry import AnyCombine
from lightvlm_fx.methods.token_scores.grid_last_query import GridLastQuery
from lightvlm_fx.methods.token_scores.last_query import LastQuery
from lightvlm_fx.methods.token_scores.log_sum_exp import LogSumExp
from lightvlm_fx.methods.token_scores.random import Random, Seed
from lightvlm_fx.methods.token_scores.raters import Raters
from lightvlm_fx.methods.token_scores.salience import Salience
from lightvlm_fx.methods.token_scores.uniform import Uniform
from lightvlm_fx.methods.token_scores.unlike_mean import UnlikeMean
from lightvlm_fx.methods.token_scores.unlike_pivots import UnlikePivots
from lightvlm_fx.methods.token_scores.variation import Variation
from lightvlm_fx.methods.token_scores.visual_heads import Rate, VisualHeads
from lightvlm_fx.presets.in_tower import after_tower
from lightvlm_fx.presets.shared import PYRAMID, QUARTERS, cuts, pyramid
from lightvlm_fx.schedule import Cut, Keep, Layer, Policy, Schedule


def fastv(keep: Keep = 0.5, layer: Layer = 2, rope: bool = True) -> Schedule:
    """FastV (arXiv 2403.06764): after layer 2, keep the tokens the last prompt token attends to most."""
    return Schedule(name="fastv", cuts=(Cut(layer=layer, keep=keep, score=LastQuery(rope=rope)),))


def pyramiddrop(
    keep: Sequence[Keep] = (0.5, 0.25, 0.125),
    layers: Sequence[Layer] = QUARTERS,
    positions: Policy = "compact",
    ahead: bool = False,
) -> Schedule:
    """PyramidDrop (arXiv 2410.17247): geometric drops at equal stages, survivors renumbered.

    The original ranks with the projections of the layer after the cut: `ahead=True`. The default takes the attention of the layer
    before, which has been computed.
    """
    return cuts("pyramiddrop", layers, keep, score=LastQuery(ahead=ahead), positions=positions)


def feather(layers: Sequence[Layer] = (0.25, 0.5), keep: Share = 0.3, stride: Positive = 3) -> Schedule:
    """FEATHER (arXiv 2412.13180): what the last prompt token attends to, scored without RoPE, and a grid of the picture; twice.

    Before the first layer of `layers`, every `stride`-th row and column stay, and int(keep * tokens) of the others; before the second,
    int(keep^2 * those that arrive) by the score alone. The paper's layers are 8 and 16 of 32.
    """
    if len(layers) != 2:
        raise ScheduleError(f"feather: layers must name two layers, got {tuple(layers)}")
    if keep**2 == 0:
        raise ScheduleError(f"feather: keep={keep} is so small that keep^2 is none at all; give a share above 1e-160")
    first = Cut(layer=layers[0], keep=GridAndShare(stride=stride, share=keep), score=GridLastQuery(stride=stride))
    second = Cut(layer=layers[1], keep=ShareOfArriving(share=keep**2), score=LastQuery(rope=False, image_softmax=True))
    return Schedule(name="feather", cuts=(first, second))

# LLaVA-1.5-7B's 19 of 32 layers (the paper's repository); of other models the same shares of the depth.
UNCHANGED = (0.001, *(layer / 32 for layer in (2, 3, 12, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31)))


def shortv(layers: Sequence[Layer] = UNCHANGED) -> Schedule:
    """ShortV (arXiv 2504.00502): in `layers` visual tokens keep their hidden state; queries, output and MLP run for text alone.

    Which layers change visual tokens least is a matter of each model: the default is LLaVA-1.5-7B's, by share of the depth. On Qwen
    models freezing can break answers (arXiv 2604.16462): compare with `lightvlm eval` before relying on it.
    """
    if not layers:
        raise ScheduleError("shortv: layers must name at least one layer, got none")
    return Schedule(name="shortv", freeze=tuple(sorted(layers)))


def dart(keep: Keep = 0.222, layer: Layer = 5 / 32) -> Schedule:
    """DART (arXiv 2502.11494): before one early layer, pivots by the norm of their keys and the tokens that are least like them.

    The paper's layer is 5 of 32, and a reduction of 0.778 is its usual one; there int(tokens * 0.222 / 8) join each of 8 pivots, 4 of
    which are text: a count of 4 + 8 * n is exactly that.
    """
    return Schedule(name="dart", cuts=(Cut(layer=layer, keep=keep, score=UnlikePivots()),))


def illava(
    keep: Keep = 0.85**4,
    layers: Sequence[Layer] = (15 / 36, 17 / 36, 19 / 36, 21 / 36),
    centres: Centres = 0.05,
    group: Positive = 5,
    tower: Share = 1.0,
) -> Schedule:
    """ILLaVA (arXiv 2412.06263), its code of 2026: by log-sum-exp; a few centres absorb what is most like them.

    Every cut leaves the same share of what arrives: 0.85 at layers 15, 17, 19 and 21 of Qwen3-VL's 36; decoders of fewer than 19 layers
    need `layers`. `tower` is what four cuts of the vision tower leave before (0.9**4 in that code, in blocks 5 to 8 of 27), by this
    block's attention, where the source's is that of the block before; `keep` is then of what they left.
    """
    absorb = Absorb(centres=centres, group=group)
    made = pyramid("illava", keep, layers, score=LogSumExp(), combine=absorb)
    return after_tower(made, tower, [x / 27 for x in (5, 6, 7, 8)], [LogSumExp()] * 4, absorb)


def v2drop(keep: Sequence[Keep] = (0.5, 0.25, 1), layers: Sequence[Layer] = (3 / 32, 16 / 32, 22 / 32)) -> Schedule:
    """V2Drop (arXiv 2509.01552): three times, the tokens that the layer before changed most; one a picture at last.

    The paper's layers are 3, 16 and 22 of 32; its code for LLaVA-1.5 has 17 in the place of 16.
    """
    return cuts("v2drop", layers, keep, score=Variation())


def sparsevlm(
    keep: Sequence[Keep] = (300 / 576, 200 / 576, 110 / 576),
    layers: Sequence[Layer] = (3 / 32, 7 / 32, 16 / 32),
    positions: Policy = "compact",
) -> Schedule:
    """SparseVLM (arXiv 2410.04417), the static budgets of its code's version 1.5: what relevant words of the question attend to.

    After layers 2, 6 and 15 of 32, 300, 200 and 110 of 576 tokens: 192 on average. What is pruned is not recycled into clusters, which
    stand after the picture there. Version 2.0 keeps positions (positions="keep"), which models with M-RoPE need.
    """
    return cuts("sparsevlm", layers, keep, score=Raters(), positions=positions)


def meteor(keep: Keep = 0.25, layer: Layer = 0.25, heads: Positive = 8, rate: Rate = 0.0, tower: Share = 1.0) -> Schedule:
    """METEOR (arXiv 2507.20842), the third of its stages: the attention of the `heads` that look at the picture most.

    With `rate`, as many tokens stay as the prompt asks for, int(rate * tokens * the mean of what those heads pay the picture), and `keep`
    is a ceiling, as many as are computed. `tower` is what the first stage leaves, two cuts after a third and two thirds of the vision
    tower: what resembles its picture's mean leaves first, then what the tower attends to least; `keep` is then of what they left.

    The paper trains its towers with that. Its second stage prunes tokens of several towers that say the same; here there is nothing to
    prune across: of the models of transformers DeepSeek-VL's hybrid has two towers, and joins them by channel, one token a place. Layer,
    heads, rate and shares are not public: these are ours.
    """
    made = Schedule(name="meteor", cuts=(Cut(layer=layer, keep=keep, score=VisualHeads(heads=heads, rate=rate)),))
    return after_tower(made, tower, [1 / 3, 2 / 3], [UnlikeMean(), Salience()], Prune())


def random(
    keep: Keep = 0.35, layers: Sequence[Layer] = PYRAMID, combine: AnyCombine = Prune(), seed: Seed = 0
) -> Schedule:
    """Baseline: random tokens, at the layers and counts of `lightvlm` for the same keep."""
    return pyramid("random", keep, layers, score=Random(seed=seed), combine=combine)


def uniform(keep: Keep = 0.35, layers: Sequence[Layer] = PYRAMID, combine: AnyCombine = Prune()) -> Schedule:
    """Baseline: evenly spaced tokens, at the layers and counts of `lightvlm` for the same keep."""
    return pyramid("uniform", keep, layers, score=Uniform(), combine=combine)


def none() -> Schedule:
    """No reduction: the full model through the same capture and compiler, the honest baseline for speed."""
    return Schedule(name="none")
