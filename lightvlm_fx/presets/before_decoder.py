"""Presets that reduce before the decoder: one cut of what the projector gives."""

from __future__ import annotations

import math

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.frozen import Number, Positive
from lightvlm_fx.methods.combines.contextual import Contextual
from lightvlm_fx.methods.combines.earlier_frame import EarlierFrame
from lightvlm_fx.methods.combines.fold import Fold as FoldedMean
from lightvlm_fx.methods.combines.into_anchors import IntoAnchors
from lightvlm_fx.methods.combines.low_pass import LowPass
from lightvlm_fx.methods.combines.neighbours import Neighbours
from lightvlm_fx.methods.combines.pool import Pool
from lightvlm_fx.methods.counts.frame_groups import FrameGroups
from lightvlm_fx.methods.counts.lattice import Lattice as SmallGrid
from lightvlm_fx.methods.counts.share_of_frames import ShareOfFrames
from lightvlm_fx.methods.counts.share_of_video import ShareOfVideo
from lightvlm_fx.methods.counts.shared_total import SharedTotal
from lightvlm_fx.methods.options import Part, Power, Share
from lightvlm_fx.methods.token_scores.determinant import Determinant
from lightvlm_fx.methods.token_scores.even_then_salient import EvenThenSalient
from lightvlm_fx.methods.token_scores.far_apart import FarApart
from lightvlm_fx.methods.token_scores.fold import Fold
from lightvlm_fx.methods.token_scores.fold_keys import FoldKeys
from lightvlm_fx.methods.token_scores.frame_change import FrameChange
from lightvlm_fx.methods.token_scores.group_change import GroupChange
from lightvlm_fx.methods.token_scores.lattice import Lattice
from lightvlm_fx.methods.token_scores.salience import Salience
from lightvlm_fx.methods.token_scores.salient_far_apart import SalientFarApart
from lightvlm_fx.methods.token_scores.salient_then_even import SalientThenEven
from lightvlm_fx.methods.token_scores.shot_anchors import ShotAnchors
from lightvlm_fx.methods.token_scores.weighted_heads import WeightedHeads, Weights
from lightvlm_fx.presets.in_tower import survivors
from lightvlm_fx.presets.shared import before
from lightvlm_fx.schedule import Cut, Keep, Layer, Policy, Schedule, TowerCut


def visionzip(dominant: Keep = 0.25, contextual: Keep = 0.05, positions: Policy = "input") -> Schedule:
    """VisionZip (arXiv 2412.04467): what the vision tower attends to most, and evenly spaced others that take up what is dropped.

    Two shares of the picture or two counts; the paper's 64 tokens are dominant=54 (CLS among them, which we have not), contextual=10.
    """
    if type(dominant) is not type(contextual):
        raise ScheduleError(f"visionzip: dominant and contextual must be two shares or two counts, got {dominant} and {contextual}")
    if isinstance(dominant, float) and dominant + contextual > 1:
        raise ScheduleError(f"visionzip: dominant + contextual must be at most 1.0, the whole picture, got {dominant} + {contextual}")
    share = contextual / (dominant + contextual)
    return before("visionzip", dominant + contextual, SalientThenEven(even=share), Contextual(share=share), positions)


def prumerge(keep: Keep = 0.125, group: Positive = 32, extra: bool = True, positions: Policy = "input") -> Schedule:
    """PruMerge (arXiv 2403.15388), with a fixed count: what the vision tower attends to most, each with its neighbours added.

    The paper's count is that of each picture's outliers, which no graph of a fixed size can have; 1/8 is its repository's fixed ratio.
    `lightvlm.outlier_share(model, inputs)` is the mean of the paper's counts over some pictures, for `keep`.
    """
    return before("prumerge", keep, Salience(), Neighbours(group=group, extra=extra), positions)


def prumerge_plus(
    keep: Keep = 0.25, even: Part = 0.5, group: Positive = 32, extra: bool = True, positions: Policy = "input"
) -> Schedule:
    """PruMerge+ (arXiv 2403.15388), with a fixed count: as `prumerge`, and `even` of what stays is spread evenly over the picture."""
    return before("prumerge+", keep, EvenThenSalient(even=even), Neighbours(group=group, extra=extra), positions)


def score(keep: Keep = 0.22, power: Power = 0.8, positions: Policy = "input") -> Schedule:
    """SCoRe (CVPR 2026, by a third-party note): as DivPrune (arXiv 2503.02175), distances weighed by what the vision tower attends to."""
    return before("score", keep, SalientFarApart(power=power), positions=positions)


def folder(
    keep: Keep = 1 / 3, louder: bool = True, positions: Policy = "input", tower: bool = False, penalty: Number = 5.0
) -> Schedule:
    """FOLDER (arXiv 2501.02430), its simple version: what the projector gives is merged in pairs, again and again, down to `keep`.

    With `tower`, the full one: in the last block of the vision tower that is used, by the keys of its attention, less `penalty` times 100
    the attention that a patch receives; a mean by size, and later attention counts sizes.
    """
    if tower and not isinstance(keep, float):
        raise ScheduleError(f"folder: keep must be a share with tower=True, got {keep}")
    folds = math.ceil(-math.log2(keep)) + 1 if isinstance(keep, float) else 16  # as many as any picture's rounding can need
    if tower and isinstance(keep, float):
        score, merged = FoldKeys(folds=folds, penalty=penalty), FoldedMean(louder=False)
        cut = TowerCut(layer=-1, keep=keep, score=score, combine=merged, proportional=True)
        return Schedule(name="folder", tower=(cut,), cuts=(survivors(keep, positions),))
    return before("folder", keep, Fold(folds=folds), FoldedMean(louder=louder), positions)


def cdpruner(keep: Keep = 0.1, negated: bool = True, positions: Policy = "input") -> Schedule:
    """CDPruner (arXiv 2506.10967): tokens relevant to the question and unlike each other, by a determinantal point process.

    Relevance is of the question's embeddings: these models have no text tower, which the paper's is of.
    """
    return before("cdpruner", keep, Determinant(negated=negated), positions=positions)


def divprune(keep: Keep = 0.1, layer: Layer = 0, positions: Policy = "input") -> Schedule:
    """DivPrune (arXiv 2503.02175): before the decoder, the tokens that are least alike, picked one by one.

    The source picks over what the projector gives, and answers as if the prompt had been that short.
    """
    return Schedule(name="divprune", cuts=(Cut(layer=layer, keep=keep, score=FarApart(), positions=positions),))


def hawk(keep: Keep = 0.2, layer: Layer = 0, weights: Weights = ()) -> Schedule:
    """HAWK (arXiv 2604.07812): before the decoder, what the text asks for by its first layer's projections, without RoPE.

    `weights` says what each head is worth, which the paper measures for each model; without, all are worth the same.
    """
    return Schedule(name="hawk", cuts=(Cut(layer=layer, keep=keep, score=WeightedHeads(weights=weights)),))


def fourier(side: Share = 2 / 3, positions: Policy = "input") -> Schedule:
    """Fourier-VLM (arXiv 2508.06038): before the decoder, the picture's low frequencies on a grid of `side` times its rows and columns.

    The source trains the model with it; without training its quality is unknown.
    """
    return before("fourier", SmallGrid(side=side), Lattice(), LowPass(), positions)


def pool(side: Share = 0.5, positions: Policy = "input") -> Schedule:
    """Baseline: average pooling before the decoder, to `side` times the picture's rows and columns."""
    return before("pool", SmallGrid(side=side), Lattice(), Pool(), positions)


def dynamic_vlm(tokens: Positive = 2048, most: Positive = 144, positions: Policy = "input") -> Schedule:
    """Dynamic-VLM (arXiv 2412.09530): average pooling before the decoder; frames share `tokens`, and each has `most` at most.

    Pictures side by side share them too. The source trains the model with it.
    """
    return before("dynamic-vlm", SharedTotal(total=tokens, most=most), Lattice(), Pool(), positions)


def dycoke(keep: Share = 0.3, positions: Policy = "input") -> Schedule:
    """DyCoke (arXiv 2411.15024), its temporal half: of every fourth frame all, of the others `keep`, what changed most.

    Still pictures stay whole. Left out: the cache entries that the source chooses anew while decoding.
    """
    return before("dycoke", FrameGroups(share=keep), GroupChange(), positions=positions)


def framefusion(keep: Share = 0.3) -> Schedule:
    """FrameFusion (arXiv 2501.01986), its merges: before the decoder, what changed least from frame to frame joins the frame before.

    As the source where so much is alike by a cosine of 0.6; else it merges less there, goes on after the first layers and prunes the
    rest by attention, which depends on the video. Still pictures stay whole.
    """
    cut = Cut(layer=0, keep=ShareOfVideo(share=keep), score=FrameChange(), combine=EarlierFrame())
    return Schedule(name="framefusion", cuts=(cut,))


def fastvid(keep: Share = 0.1, shots: Positive = 8, alike: Part = 0.9, anchors: Part = 0.4, every: Positive = 4,
            own: Part = 0.6) -> Schedule:  # fmt: skip
    """FastVID (arXiv 2503.11187): of every shot of a video what the vision tower attends to most, and anchors, which take up the rest.

    A shot is a run of frames that look alike: there are `shots` at least, and a new one where a frame's cosine with the one before is below
    `alike`. Of what stays, `anchors` are density peaks in every `every`-th frame of a shot; of a merged token, `own` is the anchor's.
    Shots depend on the video, and how many tokens a frame keeps with them, but not their sum: int(keep * tokens of a frame) for each.
    Still pictures stay whole. The source's script for Qwen2.5-VL has alike=0.84 and keep=0.27. Left out: frames that hardly differ share
    one frame's tokens there.
    """
    score = ShotAnchors(shots=shots, alike=alike, anchors=anchors, every=every)
    cut = Cut(layer=0, keep=ShareOfFrames(share=keep), score=score, combine=IntoAnchors(own=own))
    return Schedule(name="fastvid", cuts=(cut,))
