"""How alike tokens are, as tiles of cosines: what the scores `density` and `peak` and the combine `merge` share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightvlm_fx.ops.segments import by_score, by_segment, same_image, unit
from lightvlm_fx.ops.tiles import alone, pick, readable, span, tiles

WIDTH = 0.1  # cosine distance at which a token counts as 1/e of a neighbour


def directions(hidden: Tensor, segment: Tensor) -> Tensor:
    """Rows of length one [B, S, D], in the dtype of `hidden`, whose products are cosines.

    hidden [B, S, D] is centred on the row's mean visual token first (segment [B, S] tells which are), because
    what hidden states have in common would hide how they differ.
    """
    b, s, width = hidden.shape
    parts = list(tiles(hidden, s, b * width, square=False)) if hidden.dtype != torch.float32 else [(0, s)]  # no float32 copy of all
    visual = (segment >= 0).unsqueeze(1).float()
    mean = sum(visual[..., start:stop] @ hidden[:, start:stop].float() for start, stop in parts) / visual.sum(2, keepdim=True).clamp_min(1)
    made = [unit(hidden[:, start:stop].float() - mean).to(hidden.dtype) for start, stop in parts]
    return made[0] if len(made) == 1 else torch.cat(made, 1)


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """Products [B, n, m] of rows [B, n, D] with columns [B, m, D] of length one."""
    if rows.dtype == torch.float32:
        return rows @ columns.transpose(1, 2)
    return (columns @ rows.transpose(1, 2)).transpose(1, 2)  # half precision lays out its second side anew: the small one


def density(x: Tensor, segment: Tensor) -> Tensor:
    """Sum [B, S] float32 over the other tokens of the image of exp(-cosine distance / WIDTH); 0 for text.

    x [B, S, D] from `directions`, segment [B, S]. A tile's rows meet the tokens up to its end: each pair once, for both.
    """
    b, s = segment.shape
    begin, end = span(segment, segment)
    one = alone(segment[:, begin:end], segment[:, begin:end])
    as_row, as_column = [x.new_zeros(b, begin, dtype=torch.float32)], x.new_zeros(b, s, dtype=torch.float32)
    for start, stop in tiles(x, end, b * s, begin):
        first, last = (begin, stop) if one else span(segment[:, start:stop], segment[:, :stop])
        near = cosines(x[:, start:stop], x[:, first:last]).float().sub_(1).div_(WIDTH).exp_()
        # not itself, a one beside which the others would lose their digits
        near = _earlier(near, segment[:, start:stop], segment[:, first:last], start - first, one)
        as_row.append(near.sum(2))
        as_column = as_column + F.pad(near.sum(1), [first, s - last])
    return torch.cat([*as_row, x.new_zeros(b, s - end, dtype=torch.float32)], 1) + as_column


def peaks(score: Tensor, x: Tensor, segment: Tensor, power: float, base: float) -> Tensor:
    """(base + score)^power x cosine distance to the nearest token of the image with a higher score [B, S] float32; 0 for text.

    score [B, S] not negative, x [B, S, D] from `directions`, segment [B, S]. Of equal scores the earlier token counts as
    higher; the highest has a distance of 2. Sorted by score, a tile's rows have their rivals before them, image by image
    where that says which to leave out.
    """
    b, s = segment.shape
    order, kinds = by_segment(score, segment) if readable(segment) else by_score(score, segment)
    x, begin = pick(x, order), s - int((kinds >= 0).sum(1).max()) if readable(kinds) else 0  # text sorts first
    one = alone(kinds[:, begin:], kinds[:, begin:])
    nearest = [score.new_zeros(b, begin)]
    for start, stop in tiles(x, s, b * s, begin):
        first, last = (begin, stop) if one else span(kinds[:, start:stop], kinds[:, :stop])
        alike = cosines(x[:, start:stop], x[:, first:last]).float().add_(1)  # from 0 up: what is no rival becomes 0
        nearest.append(_earlier(alike, kinds[:, start:stop], kinds[:, first:last], start - first, one).amax(2))
    distance = torch.zeros_like(score).scatter(1, order, 2 - torch.cat(nearest, 1)).clamp(0, 2)
    return torch.where(segment >= 0, (score.clamp_min(0) + base) ** power * distance, 0.0)


def _earlier(pairs: Tensor, rows: Tensor, columns: Tensor, ahead: int, one: bool) -> Tensor:
    """`pairs` [B, n, m], zero but where a row's token and a column's are of one image and the column's comes first.

    rows [B, n] and columns [B, m] are segments; the first row stands `ahead` places after the first column.
    With `one`, all are of one image.
    """
    if one or alone(rows, columns):
        if pairs.stride(2) == 1:
            return pairs.tril_(ahead - 1)
        return pairs.transpose(1, 2).triu_(1 - ahead).transpose(1, 2)  # across the layout it would take ten times as long
    there, here = (torch.arange(x.shape[1], device=x.device) for x in (columns, rows))
    return pairs.mul_(same_image(rows, columns) & (there < here[:, None] + ahead))  # a product: runtimes select several times slower


def nearest(x: Tensor, segment: Tensor, others: Tensor, kinds: Tensor) -> Tensor:
    """For each token of x [B, S, D] the place [B, S] of the most alike one of `others` [B, K, D], -1 where none is of its image.

    x and `others` have rows of length one; `segment` [B, S] and `kinds` [B, K] say which image each is of. Of equals the first.
    """
    b, s = segment.shape
    begin, end = span(segment, kinds)
    found, one = [segment[:, :0]], alone(segment, kinds[:, begin:end])
    for start, stop in tiles(x, s, b * others.shape[1], square=readable(x) and not one):  # graphs compare with all others anyway
        rows = segment[:, start:stop]
        first, last = (begin, end) if one else span(rows, kinds)
        if first == last:
            found.append(torch.full_like(rows, -1))
            continue
        alike = cosines(x[:, start:stop], others[:, first:last])
        mixed = not one and not alone(rows, kinds[:, first:last])
        best = (torch.where(same_image(rows, kinds[:, first:last]), alike, -2.0) if mixed else alike).max(2)
        found.append(torch.where(best.values > -2.0, best.indices + first, -1))
    return torch.cat(found, 1)
