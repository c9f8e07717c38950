"""Merge: the values of dropped cache entries join the survivors that they resemble (LOOK-M, arXiv 2406.18139)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightvlm_fx.methods.base import EntryMerge, View

if TYPE_CHECKING:
    from torch import Tensor


class Pivot(EntryMerge):
    """Of each survivor, the mean of its own value and its half-way points to those that join it.

    A dropped entry joins the survivor of its modality whose key has the largest cosine to its own. Keys stay as they are: averaging
    keys of different rotation would blur their positions.
    """

    name = "pivot"
    source = "arXiv 2406.18139"
    reads = ("keys", "values", "index", "entry")

    def merge(self, view: View) -> tuple[Tensor, Tensor]:
        import torch

        from lightvlm_fx.ops.segments import PADDING, unit
        from lightvlm_fx.ops.similarity import nearest
        from lightvlm_fx.ops.tiles import pick, wanted

        keys, values, segment = view.keys, view.values, view.segment
        b, g, s, d = values.shape
        index, entry = view.index.expand(b, g, -1), view.entry.expand(b, g, -1)
        own = values.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, d)).float()
        kind = torch.where(segment >= 0, 1, 0)[:, None].expand(-1, g, -1)  # modality: text and visual
        stays = torch.zeros(b, g, s, dtype=torch.bool, device=keys.device).scatter_(2, index, entry >= 0)
        goes = (~stays & (segment != PADDING)[:, None]).flatten(0, 1)
        rows, x = wanted(goes), unit(keys).flatten(0, 1)
        kinds = torch.where(entry < 0, PADDING, kind.gather(2, index)).flatten(0, 1)
        found = nearest(pick(x, rows), pick(kind.flatten(0, 1), rows), pick(x, index.flatten(0, 1)), kinds)
        joins, found = (pick(goes, rows) & (found >= 0)).view(b, g, -1), found.clamp_min(0).view(b, g, -1)
        count = torch.zeros(b, g, index.shape[2], dtype=torch.float32, device=keys.device).scatter_add_(2, found, joins.float())
        joining = pick(values.flatten(0, 1), rows).view(b, g, -1, d).float() * joins.unsqueeze(-1)
        total = torch.zeros_like(own).scatter_add_(2, found.unsqueeze(-1).expand(-1, -1, -1, d), joining)
        n = count.unsqueeze(-1)
        merged = torch.where(n > 0, (own + 0.5 * (total + n * own)) / (1 + n), own).to(values.dtype)
        return torch.ops.lightvlm.take_entries(keys, index), merged
