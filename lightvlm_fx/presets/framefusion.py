"""FrameFusion (arXiv 2501.01986), its merges, as a schedule."""

from __future__ import annotations

from lightvlm_fx.methods.combines.earlier_frame import EarlierFrame
from lightvlm_fx.methods.counts.share_of_video import ShareOfVideo
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.token_scores.frame_change import FrameChange
from lightvlm_fx.schedule import Cut, Schedule

SURE = (
    "By our notes, checked again in November 2026: neighbouring frames compared by cosine at the same place, those alike by 0.6 "
    "merged, 0.3 left at last. Ours: a fixed count, merged before the decoder alone; their merges behind the first layers and the "
    "last prune by attention are left out."
)


def framefusion(keep: Share = 0.3) -> Schedule:
    """FrameFusion (arXiv 2501.01986), its merges: before the decoder, what changed least from frame to frame joins the frame before.

    As the source where so much is alike by a cosine of 0.6; else it merges less there, goes on after the first layers and prunes the
    rest by attention, which depends on the video. Still pictures stay whole.
    """
    cut = Cut(layer=0, keep=ShareOfVideo(share=keep), score=FrameChange(), combine=EarlierFrame())
    return Schedule(name="framefusion", cuts=(cut,))
