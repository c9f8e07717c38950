"""A schedule: what is reduced where, by what score, combined how. Data only; knows no model and no torch.

A schedule is small, reviewable and hashable. `Schedule.load` and `save` use TOML; unknown fields are errors.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tomllib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BeforeValidator, model_validator

from lightvlm_fx.errors import ScheduleError, UnknownName, shown
from lightvlm_fx.frozen import MOST, Frozen, as_tuple, one_of, usual
from lightvlm_fx.kv import Kv
from lightvlm_fx.methods.base import IN_TOWER, Picture, TokenCount
from lightvlm_fx.methods.combines.prune import Prune
from lightvlm_fx.methods.counts.lattice import Lattice
from lightvlm_fx.methods.flat import canonical, nested
from lightvlm_fx.methods.options import Share
from lightvlm_fx.methods.registry import COMBINES, COUNTS, SERIALIZED, TOKEN_SCORES, AnyCombine, AnyTokenScore
from lightvlm_fx.methods.token_scores.last_query import LastQuery
from lightvlm_fx.shares import share_of

_Positions = Literal["keep", "compact"]
_Policies = Literal["keep", "compact", "input"]
POSITIONS: tuple[str, ...] = get_args(_Positions)  # what a graph can do
POLICIES: tuple[str, ...] = get_args(_Policies)  # what a schedule can ask for
HASHED = ("layer", "keep", "score", "combine", "positions", "proportional")  # of a cut, in every fingerprint
HASHED_IN_TOWER = ("layer", "keep", "score", "combine", "proportional")
FLAT = {"rope": True, "image_softmax": False, "power": 0.25, "centres": 0.1, "group": 5, "seed": 0}  # of a cut, in version 0.1
SCHEMA_VERSION: Literal[1] = 1
MOST_BYTES = 2**20  # of a schedule file


def _keep(value: Any) -> Any:
    if isinstance(value, TokenCount | dict) or (isinstance(value, str) and value in COUNTS.names):
        return COUNTS.make(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScheduleError(f"keep must be a ratio in (0, 1] or a count of tokens, got {shown(value)}")
    if isinstance(value, float) and not 0 < value <= 1:
        raise ScheduleError(
            f"keep as a ratio must be in (0, 1], got {value!r}; write a whole number (e.g. keep=64) for a count"
        )
    if isinstance(value, int) and value < 1:
        raise ScheduleError(f"keep as a count must be at least 1 token an image, got {shown(value)}")
    if value > MOST:
        raise ScheduleError(f"keep as a count must be at most {MOST} tokens an image, got {shown(value)}")
    return float(value) if isinstance(value, float) else int(value)


def _layer(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScheduleError(f"layer must be a layer index or a share of the depth in (0, 1), got {shown(value)}")
    if isinstance(value, float) and not 0 < value < 1:
        raise ScheduleError(f"layer as a share of the depth must be in (0, 1), got {value!r}")
    if isinstance(value, int) and value < 0:
        raise ScheduleError(f"layer must not be negative, got {shown(value)}")
    if value > MOST:
        raise ScheduleError(f"layer must be at most {MOST}, got {shown(value)}")
    return float(value) if isinstance(value, float) else int(value)


def _block(value: Any) -> Any:
    return value if type(value) is int and value == -1 else _layer(value)


def _part(value: Any) -> Any:
    if not isinstance(value, float):
        raise ScheduleError(f"tower: keep must be a share in (0, 1] of a picture's tokens, as a count differs by tile; got {shown(value)}")
    return _keep(value)


def _version(value: Any) -> Any:
    if type(value) is not int or value != SCHEMA_VERSION:
        raise ScheduleError(f"schema_version: Input should be {SCHEMA_VERSION}, got {shown(value)}")
    return value


def _name(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ScheduleError(f"name must be text that UTF-8 can hold, got {shown(value)} ({error.reason})") from error
    return value


Keep = Annotated[int | float, BeforeValidator(_keep)]
KeepOrCount = Annotated[int | float | Annotated[TokenCount, SERIALIZED], BeforeValidator(_keep)]
Layer = Annotated[int | float, BeforeValidator(_layer)]
Positions = Annotated[_Positions, one_of("position policy", POSITIONS)]
Policy = Annotated[_Policies, one_of("position policy", POLICIES)]


class Cut(Frozen):
    """One token reduction, before decoder layer `layer` (0-based).

    `keep` is what is left of every image after this cut: a ratio of the image's original tokens, a count, or a method that
    counts. `layer` is an index, or a share of the model's depth. `positions`: survivors "keep" theirs, or are renumbered
    ("compact"); "input" is as if the prompt had been that short: renumbered, or for M-RoPE the places that they had in the picture.
    """

    layer: Layer
    keep: KeepOrCount
    score: AnyTokenScore = LastQuery()
    combine: AnyCombine = Prune()
    positions: Policy = "keep"
    proportional: bool = False  # merged keys count as the tokens they stand for, from this layer on

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, data: Any) -> Any:
        return nested(data, usual(cls), {"score": TOKEN_SCORES, "combine": COMBINES}, FLAT)

    @model_validator(mode="after")
    def _sizes_to_count(self) -> Cut:
        if self.proportional and not self.combine.counts:
            raise ScheduleError(
                f"proportional=True counts merged tokens, but combine={self.combine.name!r} merges none; use 'merge' or 'recover'"
            )
        return self

    @property
    def canonical(self) -> dict[str, Any]:
        """What the fingerprint is taken of."""
        return canonical(self.hashed(HASHED), {"score": self.score, "combine": self.combine}, FLAT)

    def tokens(self, of: int | Picture, arriving: int | None = None) -> int:
        """Tokens left of an image, of so many tokens (0 of an image of none), of which `arriving` (else all) are left.

        Raises ScheduleError if a count is above its tokens.
        """
        picture = Picture.of(of)
        n = picture.tokens
        if isinstance(self.keep, TokenCount):
            return self.keep.tokens(picture, n if arriving is None else arriving)
        if isinstance(self.keep, float):
            return share_of(self.keep, n)
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
        if layer == 0 and not self.score.before_layers:
            others = ", ".join(kind.name for kind in TOKEN_SCORES.all() if kind().before_layers)
            raise ScheduleError(
                f"cut before layer 0: score {self.score.name!r} reads the attention of the layer before; "
                f"use layer 1 or later, or a score of {others}"
            )
        return layer


class TowerCut(Frozen):
    """One token reduction inside the vision tower, in block `layer` (0-based), between its attention and its MLP.

    `layer` is an index, a share of the blocks whose output is used, or -1 for the last of those. `keep` is what is left of every
    picture after this cut, as a share of its visual tokens; patches that become one token stay together. Scores and combines are those
    of `Cut`, and see this block's attention. `proportional`: later blocks count merged patches as those that they stand for.
    """

    layer: Annotated[int | float, BeforeValidator(_block)]
    keep: Annotated[float, BeforeValidator(_part)]
    score: AnyTokenScore
    combine: AnyCombine = Prune()
    proportional: bool = False

    @model_validator(mode="after")
    def _of_what_a_tower_tells(self) -> TowerCut:
        score, options = self.score, {"rope": True, "ahead": False}  # of which a block knows this alone
        other = [f"{name}={value}" for name, known in options.items() if (value := getattr(score, name, known)) != known]
        unknown = [f"{m.what} {m.name!r} reads {x!r}" for m in (score, self.combine) for x in m.reads if x not in IN_TOWER]
        if score.by_text or score.after_tower_cuts:
            unknown.append(f"score {score.name!r} is {'what the text asks for' if score.by_text else 'who stayed'}")
        if score.across_pictures:
            unknown.append(f"score {score.name!r} compares the pictures of a prompt")
        if score.adapts or other:
            unknown.append(f"score {score.name!r} has {', '.join(other) or 'a count that adapts'}")
        if self.proportional and not self.combine.counts:
            unknown.append(f"proportional=True counts merged tokens, of which combine={self.combine.name!r} makes none")
        if unknown:
            raise ScheduleError(f"tower: {'; '.join(unknown)}: a cut inside the vision tower knows none of that; use another score or "
                                "combine there, or cut before the decoder (layer=0) or between its layers")  # fmt: skip
        return self

    def at(self, depth: int) -> int:
        """The block's index in a tower of `depth` blocks. Raises ScheduleError if it has fewer."""
        at = min(depth - 1, round(self.layer * depth)) if isinstance(self.layer, float) else self.layer
        if at >= depth:
            raise ScheduleError(f"tower: block {at} of a vision tower that uses {depth} blocks (0 to {depth - 1}); name one it has")
        return at % depth


class Schedule(Frozen):
    """What a compiled model does to its visual tokens, and how large its caches may get.

    `Schedule.preset(name, **options)` makes the published methods; `explain` says what one does to a model.
    """

    name: Annotated[str, BeforeValidator(_name)] = "custom"
    cuts: Annotated[tuple[Cut, ...], BeforeValidator(as_tuple)] = ()
    kv: Kv | None = None
    freeze: Annotated[tuple[Layer, ...], BeforeValidator(as_tuple)] = ()  # layers in which visual tokens keep their hidden state
    tower: Annotated[tuple[TowerCut, ...], BeforeValidator(as_tuple)] = ()
    downsample: Share | None = None  # of a picture's height and width, what the vision tower is given
    schema_version: Annotated[Literal[1], BeforeValidator(_version)] = SCHEMA_VERSION

    @model_validator(mode="after")
    def _cuts_in_order(self) -> Schedule:
        for name, layers in (("layers", [c.layer for c in self.cuts]), ("freeze: layers", list(self.freeze))):
            if len({type(x) for x in layers if x != 0}) > 1:  # before the first layer is an index and a share
                raise ScheduleError(f"{name} must be all indices or all shares of the depth, got {layers}")
            if layers != sorted(set(layers)):
                raise ScheduleError(f"{name} must rise and not repeat, got {layers}")
        self._tower_goes_on()
        for method in (method for cut in self.cuts[1:] for method in (cut.score, cut.combine)):
            if "tower" in method.reads:
                raise ScheduleError(
                    f"only the first cut can use {method.what} {method.name!r}: the vision tower attends to every token there was"
                )
        for first, later in zip(self.cuts, self.cuts[1:], strict=False):
            numbers = isinstance(first.keep, int | float) and isinstance(later.keep, int | float)
            if numbers and type(first.keep) is type(later.keep) and later.keep > first.keep:
                raise ScheduleError(
                    f"cut before layer {later.layer}: keep={later.keep} is above the {first.keep} that arrive "
                    f"from the cut before layer {first.layer}"
                )
        return self

    def _tower_goes_on(self) -> None:
        """What leaves inside the tower leaves the prompt before the first decoder layer: the first cut says so."""
        first = self.cuts[0] if self.cuts else None
        survived = first is not None and first.score.after_tower_cuts
        if not self.leaves_in_tower and not survived:
            return
        if self.downsample is not None and self.tower:
            raise ScheduleError(f"downsample={self.downsample} and cuts inside the vision tower cannot both be; give one of them")
        keeps, layers = [cut.keep for cut in self.tower], [cut.layer for cut in self.tower if cut.layer != -1]
        wanted = keeps[-1:] if self.downsample is None else [Lattice(side=self.downsample)]
        if not survived or first is None or first.layer != 0 or [first.keep] != wanted:
            what = "downsample: what smaller pictures lack" if self.downsample else "tower: what leaves inside the vision tower"
            keep = str(*wanted) or "that of the last cut in the tower"
            raise ScheduleError(f"{what} leaves the prompt by a first cut with layer=0, score='survived' and keep={keep}; "
                                f"got {shown(first)}")  # fmt: skip
        if first.combine.counts:  # what was dropped holds nothing, and what is told of the tower is who stayed
            raise ScheduleError(
                f"tower: the first cut only takes away what left inside the vision tower, but has combine={first.combine.name!r}; "
                "give that to the cuts in `tower`, or use a schedule without them"
            )
        if keeps != sorted(keeps, reverse=True):
            raise ScheduleError(f"tower: keep must not rise from cut to cut, got {keeps}")
        every = [cut.layer for cut in self.tower]
        if len({type(x) for x in layers}) > 1 or layers != sorted(set(layers)) or -1 in every[:-1]:
            raise ScheduleError(f"tower: layers must rise and not repeat, all indices or all shares of the depth, -1 last; got {every}")

    @staticmethod
    def preset(name: str, /, **options: Any) -> Schedule:
        """A published method or baseline by name; raises UnknownName, or ScheduleError for a bad option."""
        from lightvlm_fx.presets import make

        return make(name, **options)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over everything but the name."""
        data = self.hashed(("schema_version",)) | {"cuts": [cut.canonical for cut in self.cuts]}
        data.pop("name", None)
        if self.kv:
            data["kv"] = self.kv.canonical
        if self.tower:
            data["tower"] = [cut.hashed(HASHED_IN_TOWER) for cut in self.tower]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def leaves_in_tower(self) -> bool:
        """Whether fewer tokens come out of the vision tower than the prompt has places for."""
        return bool(self.tower) or self.downsample is not None

    @property
    def watches_tower(self) -> bool:
        """Whether a cut reads what the vision tower attends to."""
        return self.reads("tower") and not self.leaves_in_tower

    def reads(self, what: str) -> bool:
        """Whether a cut reads `what`, one of `ARGUMENTS`, to score or to combine."""
        return any(what in method.reads for cut in self.cuts for method in (cut.score, cut.combine))

    @property
    def by_grid(self) -> bool:
        """Whether how much stays of a picture depends on more than how many tokens it has."""
        return any(isinstance(cut.keep, TokenCount) and cut.keep.by_grid for cut in self.cuts)

    def layers(self, depth: int) -> list[int]:
        """Layer index of every cut in a decoder of `depth` layers; raises ScheduleError if impossible.

        Shares of the depth that fall on one layer of a shallow decoder take layers of their own, as near as there are.
        """
        at = [cut.at(depth) for cut in self.cuts]
        apart = list(at)
        for i in range(1, len(apart)):
            apart[i] = max(apart[i], apart[i - 1] + 1)
        apart = [min(layer, depth - len(apart) + i) for i, layer in enumerate(apart)]
        if apart and apart[0] < min(at[0], 1):
            raise ScheduleError(f"{len(at)} cuts need {len(at)} layers after the first, but the decoder has {depth}; give fewer cuts")
        return apart

    def token_sets(self, depth: int) -> tuple[int, ...]:
        """Of each of `depth` decoder layers, the set of tokens that its keys and queries are of (`token_set`)."""
        firsts = self.layers(depth)
        return tuple(token_set(firsts, layer) for layer in range(depth))

    def in_tower(self, depth: int) -> dict[int, TowerCut]:
        """The cuts inside a vision tower of which `depth` blocks are used, by block; raises ScheduleError if it has fewer.

        Of shares of the depth that fall on one block of a shallow tower, the last cut counts.
        """
        return {cut.at(depth): cut for cut in self.tower}

    def frozen(self, depth: int) -> tuple[int, ...]:
        """The layers that freeze visual tokens in a decoder of `depth` layers; raises ScheduleError if it has fewer."""
        at = [min(depth - 1, round(x * depth)) if isinstance(x, float) else x for x in self.freeze]
        if at and at[-1] >= depth:
            raise ScheduleError(f"freeze: layer {at[-1]} of a decoder with {depth} layers (0 to {depth - 1}); name only those it has")
        return tuple(sorted(set(at)))

    def budgets(self, of: int | Picture) -> list[int]:
        """Tokens left of an image, of so many tokens, after each cut; raises ScheduleError if they rise."""
        left, out = Picture.of(of).tokens, []
        for cut in self.cuts:
            tokens = cut.tokens(of, left)
            if tokens > left:
                raise ScheduleError(
                    f"cut before layer {cut.layer}: keep={cut.keep} is {tokens} tokens, above the {left} that arrive"
                )
            left = tokens
            out.append(left)
        return out

    def save(self, path: str | Path) -> None:
        """Write TOML that `load` reads back to an equal schedule; what stood there before stays whole until then.

        Raises ScheduleError naming the file where it cannot be written.
        """
        there = {key: value for key, value in self.model_dump(exclude_none=True).items() if value != ()}
        try:
            _replace(Path(path), tomli_w.dumps({"schema_version": self.schema_version} | there).encode())
        except (OSError, ValueError, TypeError) as error:
            raise ScheduleError(f"{_named(path)}: the schedule file cannot be written: {error}") from error

    @staticmethod
    def load(path: str | Path) -> Schedule:
        """Read a schedule file. Raises ScheduleError naming the file and the field."""
        try:
            file = Path(path)
            _regular(file)
            if file.stat().st_size > MOST_BYTES:
                raise OSError(f"it has {file.stat().st_size} bytes, a schedule at most {MOST_BYTES}")
            data = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, RecursionError) as error:  # not there, a NUL in its name, no UTF-8, no TOML, None
            raise ScheduleError(f"{_named(path)}: not a readable schedule file: {error}") from error
        try:
            return Schedule(**data)
        except (ScheduleError, UnknownName) as error:
            error.add_note(f"in schedule file {path}")
            raise


def as_schedule(schedule: Schedule | str | Path) -> Schedule:
    """A Schedule from itself, a preset's name, or a file."""
    if isinstance(schedule, Schedule):
        return schedule
    if not isinstance(schedule, str | Path):
        raise ScheduleError(f"expected a Schedule, a preset's name or the path of a schedule file, got {schedule!r}")
    if isinstance(schedule, Path) or schedule.endswith(".toml"):
        return Schedule.load(schedule)
    return Schedule.preset(schedule)


def token_set(firsts: Sequence[int], layer: int) -> int:
    """The set of tokens that layer `layer` sees, where cuts stand before the layers `firsts`: 0 the prompt's, i + 1 what cut i left."""
    return bisect_right(firsts, layer)


def shared_sizes(schedule: Schedule, depth: int) -> tuple[int, ...]:
    """A number for each layer; those of layers that keep equally many entries after every prompt are the same."""
    kv = schedule.kv
    assert kv is not None
    if kv.budgets.by_layer:
        return tuple(range(depth))
    sets = schedule.token_sets(depth)
    return tuple(number - sets[0] for number in sets)


def fixed_capacity(schedule: Schedule) -> int:
    """The slots that every buffer has while decoding, whatever the prompt; 0 where that is no one number."""
    kv = schedule.kv
    if kv is None or not kv.when.fixed or not isinstance(kv.capacity, int) or kv.budgets.adaptive or kv.budgets.by_layer:
        return 0
    return kv.capacity + kv.when.period


def _named(path: object) -> str:
    return str(path) if isinstance(path, str | Path) and str(path).isprintable() else shown(path)


def _regular(file: Path) -> None:
    if file.exists() and not file.is_file():
        raise OSError("a directory, or something else that is no regular file")


def _replace(file: Path, content: bytes) -> None:
    """Write aside, then rename: a write that fails or is killed leaves the old file as it was."""
    file = file.resolve()  # behind a link, what it points to is replaced
    _regular(file)
    aside = file.with_name(f".lightvlm-{secrets.token_hex(8)}")
    try:
        with aside.open("xb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        if file.exists():
            aside.chmod(file.stat().st_mode & 0o7777)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
