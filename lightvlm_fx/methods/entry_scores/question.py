"""KV score: which visual entries a question looks at (SparseVILA, arXiv 2510.17777, stage 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import ATTENTION, EntryScore, View

if TYPE_CHECKING:
    from torch import Tensor


class Question(EntryScore):
    """Column sums over the question's rows of a softmax over visual keys only, mean over heads.

    Of the prompt, the question is the text after the last visual token; of a later turn, all of its tokens.
    """

    name = "question"
    source = "arXiv 2510.17777"
    reads = ATTENTION
    one_choice = visual_only = asks = True

    def prompt(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import text_after_pictures

        rows = text_after_pictures(view.segment)
        # rows that are no question in any row of the batch are not computed; an exported graph cannot know which
        first = 0 if torch.compiler.is_exporting() else int(torch.where(rows.any(1), rows.long().argmax(1), rows.shape[1]).min())
        return _asked(view.q[:, :, first:], view.k, view.segment, view.scale, rows[:, first:].float())

    def ask(self, view: View) -> Tensor:
        import torch

        rows = torch.ones(view.q.shape[0], view.q.shape[2], dtype=torch.float32, device=view.q.device)
        return _asked(view.q, view.k, view.segment, view.scale, rows)


def _asked(q: Tensor, k: Tensor, segment: Tensor, scale: float, rows: Tensor) -> Tensor:
    """[B, 1, C], of the keys k [B, G, C, d] for the queries q [B, H, Q, d] that `rows` [B, Q] weighs; segment [B, C]."""
    import torch

    from lightvlm_fx.ops.segments import per_group, scaled
    from lightvlm_fx.ops.tiles import tiles

    visual = segment >= 0
    keys, score = scaled(k, scale), torch.zeros(segment.shape, dtype=torch.float32, device=q.device)
    for start, stop in tiles(q, q.shape[2], q.shape[0] * q.shape[1] * segment.shape[1]):
        logits = per_group(q[:, :, start:stop].float(), k) @ keys
        attended = logits.masked_fill(~visual[:, None, None, None], torch.finfo(torch.float32).min).softmax(-1)
        score = score + (attended * rows[:, None, None, start:stop, None]).sum(3).mean((1, 2))
    return (score * visual).unsqueeze(1)
