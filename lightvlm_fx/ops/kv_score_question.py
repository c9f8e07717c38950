"""KV score: which visual entries a question looks at (SparseVILA, arXiv 2510.17777, stage 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightvlm_fx.ops.segments import TEXT, per_group
from lightvlm_fx.ops.tiles import tiles


@torch.library.custom_op("lightvlm::kv_score_question", mutates_args=())
def kv_score_question(q: Tensor, k: Tensor, segment: Tensor, scale: float, prompt: bool) -> Tensor:
    """Score [B, 1, C] float32: column sums over the question's rows of a softmax over visual keys only, mean over heads.

    q [B, H, Q, d], k [B, G, C, d], segment [B, C] of the keys. With `prompt`, queries and keys are the same tokens, and
    the question is the text behind the last visual one; else all of q is.
    """
    visual = segment >= 0
    here = torch.arange(segment.shape[1], device=segment.device)
    if prompt:
        last = torch.where(visual, here, -1).amax(1, keepdim=True)
        # rows that are no question in any row of the batch are not computed; an exported graph cannot know which
        first = 0 if torch.compiler.is_exporting() else int(last.min()) + 1
        rows = ((segment == TEXT) & (here > last))[:, first:].float()
        q = q[:, :, first:]
    else:
        rows = torch.ones(q.shape[0], q.shape[2], dtype=torch.float32, device=q.device)
    keys, score = k.float().transpose(2, 3).unsqueeze(2), torch.zeros(segment.shape, dtype=torch.float32, device=q.device)
    for start, stop in tiles(q, q.shape[2], q.shape[0] * q.shape[1] * segment.shape[1]):
        logits = per_group(q[:, :, start:stop].float(), k) @ keys * scale
        attended = logits.masked_fill(~visual[:, None, None, None], torch.finfo(torch.float32).min).softmax(-1)
        score = score + (attended * rows[:, None, None, start:stop, None]).sum(3).mean((1, 2))
    return (score * visual).unsqueeze(1)


@kv_score_question.register_fake
def _(q, k, segment, scale, prompt):
    return q.new_empty(segment.shape[0], 1, segment.shape[1], dtype=torch.float32)
