"""A schedule: what is reduced where, by what score, combined how. Data only; knows no model and no torch.

A schedule is small, reviewable and hashable. `Schedule.load` and `save` use TOML (reading is the standard
library's; the writer below covers exactly this schema); unknown fields are errors.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from lightvlm_fx.errors import ScheduleError, UnknownName
from lightvlm_fx.frozen import Frozen, one_of, toml
from lightvlm_fx.kv import Kv

Score = Literal["last-query", "text-mean", "received", "density", "peak", "salience", "random", "uniform"]
Combine = Literal["prune", "merge", "recover"]
Positions = Literal["keep", "compact"]
SCORES: tuple[str, ...] = get_args(Score)
WITHOUT_ATTENTION = ("density", "salience", "random", "uniform")  # scores that a cut before layer 0 can have
COMBINES: tuple[str, ...] = get_args(Combine)
POSITIONS: tuple[str, ...] = get_args(Positions)
SCHEMA_VERSION: Literal[1] = 1


def _keep(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScheduleError(f"keep must be a ratio in (0, 1] or a count of tokens, got {value!r}")
    if isinstance(value, float) and not 0 < value <= 1:
        raise ScheduleError(
            f"keep as a ratio must be in (0, 1], got {value!r}; write a whole number (e.g. keep=64) for a count"
        )
    if isinstance(value, int) and value < 1:
        raise ScheduleError(f"keep as a count must be at least 1 token an image, got {value}")
    return value


def _layer(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScheduleError(f"layer must be a layer index or a share of the depth in (0, 1), got {value!r}")
    if isinstance(value, float) and not 0 < value < 1:
        raise ScheduleError(f"layer as a share of the depth must be in (0, 1), got {value!r}")
    if isinstance(value, int) and value < 0:
        raise ScheduleError(f"layer must not be negative, got {value}")
    return value


Keep = Annotated[int | float, BeforeValidator(_keep)]
Layer = Annotated[int | float, BeforeValidator(_layer)]


class Cut(Frozen):
    """One token reduction, before decoder layer `layer` (0-based).

    `keep` is what is left of every image after this cut: a ratio of the image's original tokens, or a
    count. `layer` is an index, or a share of the model's depth.
    """

    layer: Layer
    keep: Keep
    score: Annotated[Score, one_of("score", SCORES)] = "last-query"
    combine: Annotated[Combine, one_of("combine", COMBINES)] = "prune"
    positions: Annotated[Positions, one_of("position policy", POSITIONS)] = "keep"
    rope: bool = True  # score on rotated queries and keys (FEATHER scores without)
    image_softmax: bool = False  # softmax of the last-query row over image keys only
    power: float = Field(default=0.25, ge=0, le=4)  # density, peak: exponent in density^power * distance, attention^power * distance
    centres: float = Field(default=0.1, ge=0, le=1)  # recover: share of the kept tokens that absorb others
    group: int = Field(default=5, ge=1)  # recover: tokens each centre absorbs
    proportional: bool = False  # merged keys count as the tokens they stand for, from this layer on
    seed: int = Field(default=0, ge=0, lt=2**32)  # random

    @model_validator(mode="after")
    def _sizes_to_count(self) -> Cut:
        if self.proportional and self.combine == "prune":
            raise ScheduleError("proportional=True counts merged tokens, but combine='prune' merges none; use 'merge' or 'recover'")
        return self

    def tokens(self, n: int) -> int:
        """Tokens left of an image of `n` tokens (0 for an image of none).

        Raises ScheduleError if a count is above `n`.
        """
        if isinstance(self.keep, float):
            return min(n, max(1, math.floor(n * self.keep + 0.5))) if n else 0
        if self.keep > n:
            raise ScheduleError(
                f"cut before layer {self.layer}: keep={self.keep} is above the {n} visual tokens of an image; "
                "use a smaller count, or a ratio such as keep=0.35 (each tile of a model that marks them one by one is an image)"
            )
        return self.keep

    def at(self, depth: int) -> int:
        """The layer index in a decoder of `depth` layers. Raises ScheduleError if it is beyond the model."""
        layer = min(depth - 1, max(1, round(self.layer * depth))) if isinstance(self.layer, float) else self.layer
        if not layer < depth:
            raise ScheduleError(
                f"cut before layer {layer}: the decoder has {depth} layers (0 to {depth - 1}); "
                "use a smaller index, or a share of the depth such as layer=0.25"
            )
        if layer == 0 and self.score not in WITHOUT_ATTENTION:
            raise ScheduleError(
                f"cut before layer 0: score {self.score!r} reads the attention of the layer before; "
                f"use layer 1 or later, or a score of {', '.join(WITHOUT_ATTENTION)}"
            )
        return layer


class Schedule(Frozen):
    """What a compiled model does to its visual tokens, and how large its caches may get.

    `Schedule.preset(name, **options)` makes the published methods; `explain` says what one does to a model.
    """

    name: str = "custom"
    cuts: tuple[Cut, ...] = ()
    kv: Kv | None = None
    schema_version: Literal[1] = SCHEMA_VERSION

    @model_validator(mode="after")
    def _cuts_in_order(self) -> Schedule:
        layers = [c.layer for c in self.cuts]
        if len({type(x) for x in layers}) > 1:
            raise ScheduleError(f"layers must be all indices or all shares of the depth, got {layers}")
        if layers != sorted(set(layers)):
            raise ScheduleError(f"layers must rise and not repeat, got {layers}")
        if any(cut.score == "salience" for cut in self.cuts[1:]):
            raise ScheduleError("only the first cut can use score 'salience': the vision tower attends to every token there was")
        for first, later in zip(self.cuts, self.cuts[1:], strict=False):
            if type(first.keep) is type(later.keep) and later.keep > first.keep:
                raise ScheduleError(
                    f"cut before layer {later.layer}: keep={later.keep} is above the {first.keep} that arrive "
                    f"from the cut before layer {first.layer}"
                )
        return self

    @staticmethod
    def preset(name: str, **options: Any) -> Schedule:
        """A published method or baseline by name; raises UnknownName, or ScheduleError for a bad option."""
        from lightvlm_fx.presets import make

        return make(name, **options)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over everything but the name."""
        data = self.model_dump(mode="json", exclude={"name"} if self.kv else {"name", "kv"})
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def layers(self, depth: int) -> list[int]:
        """Layer index of every cut in a decoder of `depth` layers; raises ScheduleError if impossible."""
        at = [cut.at(depth) for cut in self.cuts]
        if at != sorted(set(at)):
            raise ScheduleError(
                f"the cuts fall on layers {at} of a decoder with {depth} layers; give distinct layers, e.g. layers=(1, 2)"
            )
        return at

    def budgets(self, n: int) -> list[int]:
        """Tokens left of an image of `n` tokens after each cut; raises ScheduleError if they rise."""
        left, out = n, []
        for cut in self.cuts:
            tokens = cut.tokens(n)
            if tokens > left:
                raise ScheduleError(
                    f"cut before layer {cut.layer}: keep={cut.keep} is {tokens} tokens, above the {left} that arrive"
                )
            left = tokens
            out.append(left)
        return out

    def save(self, path: str | Path) -> None:
        """Write TOML that `load` reads back to an equal schedule."""
        lines = [f"schema_version = {self.schema_version}", f"name = {toml(self.name)}"]
        for cut in self.cuts:
            lines += ["", "[[cuts]]"]
            lines += [f"{key} = {toml(value)}" for key, value in cut.model_dump().items()]
        if self.kv:
            lines += ["", "[kv]", *(f"{key} = {toml(value)}" for key, value in self.kv.model_dump().items())]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Schedule:
        """Read a schedule file. Raises ScheduleError naming the file and the field."""
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ScheduleError(f"{path}: not a readable schedule file: {error}") from error
        try:
            return Schedule(**data)
        except (ScheduleError, UnknownName) as error:
            error.add_note(f"in schedule file {path}")
            raise
