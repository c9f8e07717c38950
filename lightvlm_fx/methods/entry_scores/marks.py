"""KV score: how often an entry was important of late (Scissorhands, arXiv 2305.17118)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.base import ATTENTION, EntryScore, View

if TYPE_CHECKING:
    from torch import Tensor


class Marks(EntryScore):
    """Of the last `window` rows, the share of heads that gave the entry a fair share or more: one over the entries that the row sees.

    Older rows count less, by 1 - 1/window a row, as in the decoding steps that carry the score on.
    """

    name = "marks"
    source = "arXiv 2305.17118"
    reads = ATTENTION
    steps = True
    window: Positive = 32

    @property
    def decay(self) -> float:
        return 1 - 1 / self.window

    @property
    def fewest(self) -> int:
        return self.window

    def prompt(self, view: View) -> Tensor:
        import torch

        from lightvlm_fx.ops.segments import PADDING, per_group, scaled
        from lightvlm_fx.ops.tiles import tiles

        q, k, segment, scale = view.q, view.k, view.segment, view.scale
        s = segment.shape[1]
        first = max(0, s - self.window)
        here = torch.arange(s, device=segment.device)
        valid = segment != PADDING
        keys, score = scaled(k, scale), torch.zeros(k.shape[:3], dtype=torch.float32, device=k.device)
        for start, stop in tiles(q, s, q.shape[0] * q.shape[1] * s, first):
            seen = (here <= here[start:stop, None]) & valid[:, None]  # [B, rows, S]
            logits = per_group(q[:, :, start:stop].float(), k) @ keys
            attended = logits.masked_fill(~seen[:, None, None], torch.finfo(torch.float32).min).softmax(-1)
            fair = 1 / seen.sum(-1).clamp_min(1).float()[:, None, None, :, None]
            marks = ((attended >= fair) & seen[:, None, None]).float().mean(2)  # [B, G, rows, S]
            decay = self.decay ** (s - 1 - here[start:stop]).float()
            score = score + (marks * (decay * valid[:, start:stop])[:, None, :, None]).sum(2)
        return score

    @staticmethod
    def carry(score: Tensor, probabilities: Tensor, seen: Tensor, decay: float) -> None:
        import torch

        from lightvlm_fx.ops.bounded_attention import over_heads

        fair = 1 / seen.sum(-1, keepdim=True).clamp_min(1).unsqueeze(2).float()
        marks = ((probabilities >= fair) & seen.unsqueeze(2)).float()
        score.mul_(decay ** seen.shape[2])
        received = over_heads(marks, score)
        if seen.shape[2] > 1:  # as if the tokens had come one by one
            ages = torch.arange(seen.shape[2] - 1, -1, -1, device=score.device)
            received = received * (decay ** ages.float()).unsqueeze(-1)
        score.add_(received.sum(2))
