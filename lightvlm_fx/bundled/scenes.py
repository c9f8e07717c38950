"""Scenes, their pictures, and questions with known answers: the data of the bundled model.

A scene is a handful of coloured things on a 4 x 4 grid. Things are drawn shapes or real handwritten
digits (scikit-learn's bundled 8 x 8 scans). The renderer knows every answer, so training, held-out
evaluation and the demo pictures all come from here. Nothing in this file knows torch or a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

GRID = 4  # cells a side
SIZE = 96  # pixels a side of the picture that the tower sees
CELL = SIZE // GRID
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (50, 190, 70),
    "blue": (60, 100, 240),
    "yellow": (240, 220, 60),
    "purple": (185, 75, 215),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
DIGITS = tuple("0123456789")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
COLUMNS = tuple(f"x{i}" for i in range(GRID))
ROWS = tuple(f"y{i}" for i in range(GRID))
KINDS = ("colour", "shape", "count", "where", "digit", "describe")
PLURALS = {shape: ("crosses" if shape == "cross" else shape + "s") for shape in SHAPES}
WORDS = (
    *COLOURS,
    *SHAPES,
    *DIGITS,
    *NUMBERS,
    *COLUMNS,
    *ROWS,
    *PLURALS.values(),
    *("empty", "a", "an", "the", "is", "are", "there", "at", "of", "what", "which", "where", "how", "many"),
    *("colour", "shape", "digit", "digits"),
    *["object", "objects", "and", "in", "picture", "describe", "shows", "colours", "?", ".", ",", ":"],
)


@dataclass(frozen=True, order=True)
class Thing:
    """One thing in one cell; ordering is raster order."""

    y: int
    x: int
    colour: str
    kind: str  # a shape, or a digit as text

    @property
    def is_digit(self) -> bool:
        return self.kind in DIGITS

    @property
    def place(self) -> str:
        return f"{COLUMNS[self.x]} {ROWS[self.y]}"


@dataclass(frozen=True)
class Scene:
    """Things in raster order, at most one a cell."""

    things: tuple[Thing, ...]

    def cells(self) -> list[tuple[str, ...]]:
        """For each cell in raster order, the words that describe it: (colour, kind, column, row)."""
        here = {(t.y, t.x): t for t in self.things}
        out: list[tuple[str, ...]] = []
        for y in range(GRID):
            for x in range(GRID):
                t = here.get((y, x))
                words = (t.colour, t.kind) if t else ("empty",)
                out.append((*words, COLUMNS[x], ROWS[y]))
        return out


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


def sample_scene(rng: np.random.Generator, things: int | None = None, digits: float = 0.35) -> Scene:
    """A scene with `things` things (default: 4 to 8), a share `digits` of them digits."""
    n = int(rng.integers(4, 9)) if things is None else things
    cells = rng.permutation(GRID * GRID)[:n]
    colours = list(COLOURS)
    made = []
    for cell in cells:
        kinds = DIGITS if rng.random() < digits else SHAPES
        colour, kind = colours[rng.integers(len(colours))], kinds[rng.integers(len(kinds))]
        made.append(Thing(int(cell) // GRID, int(cell) % GRID, colour, kind))
    return Scene(tuple(sorted(made)))


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """A question of `kind` with exactly one right answer, or None where this scene has none."""
    things = scene.things
    if kind == "describe":
        return Question(kind, "describe the picture .", describe(scene))
    if kind == "count":
        return _ask_count(scene, rng)
    if kind == "where":
        unique = [t for t in things if sum((t.colour, t.kind) == (o.colour, o.kind) for o in things) == 1]
        if not unique:
            return None
        t = unique[int(rng.integers(len(unique)))]
        return Question(kind, f"where is the {t.colour} {t.kind} ?", t.place)
    wanted = [t for t in things if kind == "colour" or t.is_digit == (kind == "digit")]
    if not wanted:
        return None
    t = wanted[int(rng.integers(len(wanted)))]
    if kind == "colour":
        if sum(o.kind == t.kind for o in things) == 1 and rng.random() < 0.7:
            return Question(kind, f"what colour is the {t.kind} ?", t.colour)
        return Question(kind, f"what colour is the object at {t.place} ?", t.colour)
    rivals = sum(o.colour == t.colour and o.is_digit == t.is_digit for o in things)
    if rivals == 1 and rng.random() < 0.7:
        return Question(kind, f"which {kind} is {t.colour} ?", t.kind)
    return Question(kind, f"which {kind} is at {t.place} ?", t.kind)


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question:
    what = rng.random()
    if what < 0.15:
        name, n = "objects", len(scene.things)
    elif what < 0.3:
        name, n = "digits", sum(t.is_digit for t in scene.things)
    elif what < 0.65:
        seen = [t.colour for t in scene.things] if rng.random() < 0.8 else list(COLOURS)
        colour = _pick(rng, seen)
        name, n = f"{colour} objects", sum(t.colour == colour for t in scene.things)
    else:
        shapes = [t.kind for t in scene.things if not t.is_digit]
        shape = _pick(rng, shapes if shapes and rng.random() < 0.8 else SHAPES)
        name, n = PLURALS[shape], sum(t.kind == shape for t in scene.things)
    return Question("count", f"how many {name} are there ?", NUMBERS[n])


def describe(scene: Scene) -> str:
    """The long answer: every thing in raster order, then how many there are of each colour."""
    n = len(scene.things)
    parts = [f"the picture shows {NUMBERS[n]} objects ."]
    parts += [f"at {t.place} there is a {t.colour} {t.kind} ." for t in scene.things]
    counts = {c: sum(t.colour == c for t in scene.things) for c in COLOURS}
    parts.append("colours : " + " , ".join(f"{NUMBERS[k]} {c}" for c, k in counts.items() if k) + " .")
    return " ".join(parts)


# --- pictures ---------------------------------------------------------------------------------------

_FINE = 96  # pixels a side of a glyph before it is scaled into its cell


@cache
def _shape_glyph(shape: str) -> Image.Image:
    big = _FINE * 4
    glyph = Image.new("L", (big, big))
    draw, m = ImageDraw.Draw(glyph), big * 0.04
    lo, hi, mid = m, big - m, big / 2
    if shape in ("circle", "ring"):
        draw.ellipse((lo, lo, hi, hi), fill=255)
        if shape == "ring":
            hole = big * 0.27
            draw.ellipse((hole, hole, big - hole, big - hole), fill=0)
    elif shape == "square":
        draw.rectangle((lo + m, lo + m, hi - m, hi - m), fill=255)
    elif shape == "triangle":
        draw.polygon([(mid, lo), (hi, hi), (lo, hi)], fill=255)
    elif shape == "diamond":
        draw.polygon([(mid, lo), (hi, mid), (mid, hi), (lo, mid)], fill=255)
    else:  # cross
        arm = big * 0.15
        draw.rectangle((mid - arm, lo, mid + arm, hi), fill=255)
        draw.rectangle((lo, mid - arm, hi, mid + arm), fill=255)
    return glyph.resize((_FINE, _FINE), Image.Resampling.BOX)


@cache
def digit_scans(held_out: bool) -> dict[str, list[Image.Image]]:
    """Scikit-learn's digit scans as 96 x 96 glyphs; every fifth scan is held out from training.

    Raises ImportError, saying what to install, where scikit-learn is not there.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        raise ImportError(
            "the held-out pictures show scikit-learn's scans of handwritten digits: pip install scikit-learn (or lightvlm-fx[eval])"
        ) from error

    data = load_digits()
    scans: dict[str, list[Image.Image]] = {d: [] for d in DIGITS}
    for i, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
        if (i % 5 == 0) == held_out:
            pixels = Image.fromarray((image * (255 / 16)).astype(np.uint8))
            scans[str(label)].append(pixels.resize((_FINE, _FINE), Image.Resampling.BICUBIC))
    return scans


def _warped(glyph: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """A glyph turned, sheared and scaled a little about its middle: another hand wrote it."""
    turn, shear = strength * rng.uniform(-0.22, 0.22), strength * rng.uniform(-0.2, 0.2)
    wide, high = 1 / (1 + strength * rng.uniform(-0.15, 0.12, 2))
    a, b = np.cos(turn) * wide, (np.sin(turn) + shear) * wide
    d, e = -np.sin(turn) * high, np.cos(turn) * high
    mid = _FINE / 2
    data = (a, b, mid - a * mid - b * mid, d, e, mid - d * mid - e * mid)
    return glyph.transform(glyph.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def render(
    scene: Scene, rng: np.random.Generator, *, held_out: bool = False, scale: int = 1, warp: float = 0.0
) -> NDArray[np.uint8]:
    """The scene as RGB uint8 [96*scale, 96*scale, 3], with random sizes, offsets, shades and noise.

    `warp` (0 to 1) also bends the digits, so that training sees more hands than scikit-learn's scans hold.
    """
    cell = CELL * scale
    shade = rng.uniform(10, 60) + rng.uniform(-8, 8, 3)
    canvas = np.empty((SIZE * scale, SIZE * scale, 3), np.float32)
    canvas[:] = shade
    canvas += np.linspace(-10, 10, SIZE * scale, dtype=np.float32)[:, None, None] * rng.uniform(-1, 1)
    for t in scene.things:
        glyphs = digit_scans(held_out)[t.kind] if t.is_digit else [_shape_glyph(t.kind)]
        side = round(rng.uniform(0.78, 0.95) * cell)
        glyph = glyphs[int(rng.integers(len(glyphs)))]
        if warp and t.is_digit:
            glyph = _warped(glyph, rng, warp)
        alpha = glyph.resize((side, side), Image.Resampling.BILINEAR)
        weight = np.asarray(alpha, np.float32)[..., None] / 255
        top, left = rng.integers(0, cell - side + 1, 2) + (t.y * cell, t.x * cell)
        spot = canvas[top : top + side, left : left + side]
        colour = np.array(COLOURS[t.colour], np.float32) + rng.uniform(-15, 15, 3)
        spot += (colour - spot) * weight
    canvas += rng.normal(0, 5, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)
