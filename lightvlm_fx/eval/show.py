"""A picture of what a schedule does: which patches survive each cut, and which were merged into which."""

from __future__ import annotations

import colorsys
import math
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightvlm_fx.errors import InputError

PANEL = 384  # pixels a side
MARGIN, HEAD = 12, 40


def holders(fast: Any) -> list[Tensor]:
    """For each cut of the latest prefill, the survivor of every visual token of the first picture, or -1.

    Each entry is [N] int64 on the original tokens: equal numbers were merged into one survivor, whose own
    place among the N the number is.
    """
    layout, survivors = fast.lightvlm.layout, fast.lightvlm.survivors
    places = torch.nonzero(layout.segment[0] == 0).flatten()
    at = torch.arange(layout.segment.shape[1])  # where each original token is now, -1 for nowhere
    origin = at.clone()  # original token behind each token that is left
    out = []
    for number in range(len(fast.lightvlm.schedule.cuts)):
        index = survivors[f"index.{number}"][0].cpu()
        went = survivors.get(f"went.{number}")
        if went is None:
            moved = torch.full((int(origin.shape[0]),), -1)
            moved[index] = torch.arange(len(index))
        else:
            moved = went[0].cpu()
        at = torch.where(at >= 0, moved[at.clamp_min(0)], -1)
        origin = origin[index]
        holder = torch.where(at >= 0, origin[at.clamp_min(0)], -1)[places]
        out.append(torch.where(holder >= 0, holder - places[0], -1))
    return out


def draw(fast: Any, picture: Image.Image) -> Image.Image:
    """Panels side by side: the picture, then what each cut leaves. Call after the model has answered about `picture`.

    Survivors are framed in their colour, what was merged into them is tinted with it, what was dropped is dark.
    Raises InputError where the visual tokens do not form a square.
    """
    layout = fast.lightvlm.layout
    if layout is None or not layout.has_images:
        raise InputError("nothing to show: answer a question about one picture first")
    n = layout.images[0][0]
    side = math.isqrt(n)
    if side * side != n:
        raise InputError(f"the picture became {n} visual tokens, which is no square grid; show draws square grids only")
    maps = holders(fast)
    layers = fast.lightvlm.report.of("prefill")[0].tokens_per_layer
    firsts = fast.lightvlm.schedule.layers(len(layers))
    base = picture.convert("RGB").resize((PANEL, PANEL), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (MARGIN + (PANEL + MARGIN) * (len(maps) + 1), PANEL + HEAD + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    captions = [f"{n} visual tokens"]
    captions += [
        f"from layer {first}: {len(set(m[m >= 0].tolist()))} tokens, of {100 * float((m >= 0).float().mean()):.0f} % of patches"
        for first, m in zip(firsts, maps, strict=True)
    ]
    for i, caption in enumerate(captions):
        left = MARGIN + i * (PANEL + MARGIN)
        pen.text((left, 10), caption, "black", font)
        sheet.paste(base if i == 0 else _panel(base, maps[i - 1], side), (left, HEAD))
    return sheet


def _colour(survivor: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((survivor * 0.61803) % 1, 0.9, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def _panel(base: Image.Image, holder: Tensor, side: int) -> Image.Image:
    panel = base.copy()
    step = PANEL / side
    frames = []
    for patch, survivor in enumerate(holder.tolist()):
        y, x = divmod(patch, side)
        box = tuple(round(v * step) for v in (x, y, x + 1, y + 1))
        tile = panel.crop(box)
        tint = Image.new("RGB", tile.size, _colour(survivor) if survivor >= 0 else (0, 0, 0))
        panel.paste(Image.blend(tile, tint, 0.38 if survivor >= 0 else 0.8), box)
        if survivor == patch:
            frames.append((box, _colour(survivor)))
    pen = ImageDraw.Draw(panel)
    for (left, top, right, bottom), colour in frames:
        pen.rectangle((left, top, right - 1, bottom - 1), outline="black", width=5)
        pen.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline=colour, width=3)
    return panel
