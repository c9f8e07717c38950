"""FastVID (arXiv 2503.11187), as a schedule."""

from __future__ import annotations

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.combines.into_anchors import IntoAnchors
from lightvlm_fx.methods.counts.share_of_frames import ShareOfFrames
from lightvlm_fx.methods.options import Part, Share
from lightvlm_fx.methods.token_scores.shot_anchors import ShotAnchors
from lightvlm_fx.schedule import Cut, Schedule

SURE = (
    "Read from the authors' code for Qwen2.5-VL: shots, anchors, what the tower attends to, the weights of the merge. Ours: ties go "
    "to the earlier token, and half of a frame are anchors at most; left out: frames that hardly differ share one frame's tokens "
    "there."
)


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
