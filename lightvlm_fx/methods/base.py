"""What a method is: a frozen value with a name, options of its own, a source, and the values that its tensor code reads.

A method's file imports torch inside its functions, so that schedules can be made and read where there is none.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError

from lightvlm_fx.carries import CARRY
from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.frozen import Frozen, readable

if TYPE_CHECKING:
    from torch import Tensor

# What tensor code can read, and how a graph hands it on; an operator takes what it reads in this order, then its options.
ARGUMENTS = {
    "hidden": "Tensor hidden",  # [B, S, D], before the layer that follows the cut
    "previous": "Tensor previous",  # [B, S, D], before the layer that precedes the cut
    "q": "Tensor q",  # [B, H, S, d], rotated; of the layer before a cut, of its own layer for an entry score
    "k": "Tensor k",  # [B, G, S, d]
    "v": "Tensor v",  # [B, G, S, d]
    "keys": "Tensor keys",  # [B, G, S, d], as they are cached
    "values": "Tensor values",
    "size": "Tensor? size",  # [B, S] float32: the tokens that each stands for; None: one each
    "worth": "Tensor? worth",  # [B, G, S] float32: the scores that decoding steps carry on
    "score": "Tensor score",  # [B, S] float32
    "rank": "Tensor rank",  # [B, S] int64: place of a visual token by score within its image
    "segment": "Tensor segment",  # [B, S] int64: PADDING, TEXT, or the number of the image
    "mask": "Tensor? mask",  # [B, 1, S, S], boolean or additive; None: causal
    "scale": "float scale",
    "budget": "Tensor budget",  # [B, S] int64: what stays of the image that a token is of
    "stay": "SymInt stay",  # tokens that a row keeps, text too
    "index": "Tensor index",  # [B, K] (entries: [B, G, K]): places of what stays
    "left": "Tensor left",  # [B, K] int64: segment of what stays
    "entry": "Tensor entry",  # [B, G, K] int64: the place again, -1 for an empty slot
    "went": "Tensor went",  # [B, 1 or G, S] int64: which of what stays an entry goes to, by its place there, -1 for none
    "statistic": "Tensor statistic",  # [B, L, n] float32
    "layer": "int layer",  # of the cut
    "shared": "bool shared",  # whether the KV heads share one choice
    "grid": "Tensor grid",  # [B, S, 6] int64: frame, row, column of a visual token; frames, rows, columns of its picture; else 0
    "embeds": "Tensor embeds",  # [B, S, D]: what the tokens were before the first layer
    "noted": "Tensor noted",  # [B, S] float32: what the score's `note` made of the prompt, at the tokens that are left
    "tower": "Tensor tower",  # [B, S] float32: what the vision tower attends to, at the visual tokens
}
ATTENTION = ("q", "k", "scale")
# Of them, what a cut inside a vision tower can be told.
IN_TOWER = ("hidden", "q", "k", "size", "score", "rank", "segment", "mask", "scale", "budget", "stay", "index", "left", "layer", "tower")
TYPES = {bool: "bool", int: "int", float: "float", str: "str", tuple: "float[]"}


@dataclass(frozen=True)
class View:
    """What tensor code is given, by the names of `ARGUMENTS`; what a method does not read is None."""

    hidden: Any = None
    previous: Any = None
    q: Any = None
    k: Any = None
    v: Any = None
    keys: Any = None
    values: Any = None
    size: Any = None
    worth: Any = None
    score: Any = None
    rank: Any = None
    segment: Any = None
    mask: Any = None
    scale: Any = None
    budget: Any = None
    stay: Any = None
    index: Any = None
    left: Any = None
    entry: Any = None
    went: Any = None
    statistic: Any = None
    layer: Any = None
    shared: Any = None
    grid: Any = None
    embeds: Any = None
    noted: Any = None
    tower: Any = None


class Method(Frozen):
    """Fields are the options of this method and of nobody else."""

    what: ClassVar[str]  # as messages call its kind
    name: ClassVar[str]
    source: ClassVar[str]  # the paper by its arXiv number, or what else it is
    reads: ClassVar[tuple[str, ...]] = ()  # of ARGUMENTS
    wiring: ClassVar[tuple[str, ...]] = ()  # options that say which values it is given; its tensor code does not see them

    def __init__(self, /, **data: Any) -> None:
        try:
            super(Frozen, self).__init__(**data)
        except ValidationError as error:
            kind = type(self)
            raise readable(error, f"a valid option of {kind.what} {kind.name!r}", list(kind.model_fields)) from None

    @property
    def fewest(self) -> int:
        """Tokens that a sequence needs, so that the tensor code is the same for every length from there on: graphs of a symbolic length."""
        return 1

    @property
    def data(self) -> Any:
        """The name alone, or a table of it and of the options that differ from their defaults: as schedule files hold it."""
        return {"name": self.name, **self.changed} if self.changed else self.name

    def __str__(self) -> str:
        """`name:option=value`, as passes print and parse it."""
        return ":".join([self.name, *(f"{name}={written(value)}" for name, value in self.changed.items())])


def written(value: Any) -> str:
    """An option's value as passes print it; a tuple holds no comma, which would end the option."""
    return "/".join(map(str, value)) + "/" if isinstance(value, tuple) else str(value)


def method_table(text: str, read: Callable[[str], Any]) -> dict[str, Any]:
    """What a method prints as, as the table {name, options} of it; `read` makes a value of an option's text."""
    name, *options = text.split(":")
    return {"name": name} | {key: read(value) for key, _, value in (option.partition("=") for option in options)}


class TokenScore(Method):
    """What a cut ranks visual tokens by: `score` gives [B, S] float32, higher for what stays."""

    what = "score"
    by_text: ClassVar[bool] = False  # it is what the prompt's text asks for
    across_pictures: ClassVar[bool] = False  # it compares a token with those of the row's other pictures
    after_tower_cuts: ClassVar[bool] = False  # its cut, the first one, takes away what cuts inside the vision tower dropped

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """[B, S] float32, of tensors that the class `reads`."""

    def note(self, view: View) -> Tensor:
        """[B, S] float32 of `embeds` and `segment` of the whole prompt, of a class that reads `noted`: once, whatever the cut."""
        raise NotImplementedError(f"score {self.name!r} reads what was noted, but has no `note`")

    def wanted(self, view: View) -> Tensor:
        """How many tokens [B, S] int64 of a token's image are to stay, of `score`, `segment` and `budget`; of a class that `adapts`.

        The budget is a ceiling: its tokens are computed whatever is wanted, and nothing attends to those beyond that.
        """
        raise NotImplementedError(f"score {self.name!r} adapts, but has no `wanted`")

    @property
    def adapts(self) -> bool:
        """Whether less than the budget may stay, by what the prompt says."""
        return False

    @property
    def said(self) -> str:
        """What a cut ranks by, as `explain` puts it."""
        return self.name

    @property
    def before_layers(self) -> bool:
        """Whether a cut before layer 0 can have it: it reads nothing of a layer before."""
        return not {"q", "k", "previous"} & set(self.reads)


class AttentionScore(TokenScore):
    """Reads queries and keys of the layer before the cut; without `rope`, before rotary embedding (FEATHER, arXiv 2412.13180).

    `ahead`: of the layer after the cut, from what arrives there (PyramidDrop, arXiv 2410.17247), before layer 0 too; its input norm and
    two projections then run for all that arrives, and once more for what stays.
    """

    reads: ClassVar[tuple[str, ...]] = ATTENTION
    wiring = ("rope", "ahead")
    rope: bool = True
    ahead: bool = False

    @property
    def said(self) -> str:
        return self.name if self.rope else f"{self.name} without RoPE"

    @property
    def before_layers(self) -> bool:
        return self.ahead


@dataclass(frozen=True)
class Picture:
    """A picture or video of a prompt, as counts are asked about it."""

    tokens: int  # visual ones, before any cut
    grid: tuple[int, int, int] | None = None  # frames, rows and columns that they stand in; None where they form no rectangle
    beside: int = 1  # pictures in its row of the batch, itself included

    @staticmethod
    def of(size: int | Picture) -> Picture:
        return size if isinstance(size, Picture) else Picture(size)

    @property
    def sides(self) -> tuple[int, int, int]:
        """Frames, rows and columns; a picture of unknown grid is a square. Raises ScheduleError where it cannot be one."""
        side = math.isqrt(self.tokens)
        if self.grid is None and side * side != self.tokens:
            raise ScheduleError(
                f"a picture of {self.tokens} visual tokens has no known grid (row breaks, tiles of several sizes, or a video "
                "lie between), and this schedule keeps rows and columns of it; use a schedule that keeps a share of the tokens"
            )
        return self.grid or (1, side, side)


class TokenCount(Method):
    """How many tokens of a picture stay at a cut, where that is neither a share of the picture nor one number."""

    what = "count"
    by_grid: ClassVar[bool] = True  # it asks for more than how many tokens there are
    by_row: ClassVar[bool] = False  # it asks how many pictures stand beside this one

    @abstractmethod
    def tokens(self, picture: Picture, arriving: int) -> int:
        """Of `picture`, of which `arriving` tokens are left: 1 to `arriving`. Raises ScheduleError."""


class Combine(Method):
    """What becomes of the tokens that a cut drops: `combine` gives hidden [B, K, D], size [B, K], and where each token went [B, S]."""

    what = "combine"
    counts: ClassVar[bool] = True  # survivors stand for several tokens; else they stay as they are, and `combine` is not asked

    def combine(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden [B, K, D], size [B, K] float32 and the survivor [B, S] int64 that each token went to; of a class that `counts`."""
        raise NotImplementedError(f"combine {self.name!r} counts, but has no `combine`")


class EntryScore(Method):
    """What cache entries are worth: `prompt` gives [B, G, S] float32, or [B, 1, S] where the heads share one choice."""

    what = "KV score"
    one_choice: ClassVar[bool] = False  # the KV heads of a layer always keep the same entries
    visual_only: ClassVar[bool] = False  # it ranks the entries of pictures
    steps: ClassVar[bool] = False  # decoding steps go on choosing by it
    asks: ClassVar[bool] = False  # a later turn chooses again, by `ask`
    statistics: ClassVar[bool] = False  # `prompt` gives a second result, [B, n] float32, for budgets that adapt

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if "name" in vars(cls):
            CARRY[cls.name] = cls.carry

    def problems(self, kv: Any) -> Iterator[str]:
        """What this score does not go with in the bound `kv` that it is the score of."""
        if self.visual_only and kv.of == "all":
            yield f"score={self.name!r} ranks visual entries and needs of='visual'"

    @abstractmethod
    def prompt(self, view: View) -> Any:
        """[B, G, S] or [B, 1, S] float32 of the prompt's entries."""

    def ask(self, view: View) -> Tensor:
        """[B, 1, C] float32 of the entries `k` for new tokens, which ask a question: of a class that `asks`."""
        raise NotImplementedError(f"KV score {self.name!r} asks, but has no `ask`")

    @property
    def carried(self) -> bool:
        """Whether every entry has a running score, which `carry` brings up to date."""
        return type(self).carry is not EntryScore.carry

    @property
    def decay(self) -> float:
        """By which a running score fades with every step."""
        return 1.0

    @staticmethod
    def carry(score: Tensor, probabilities: Tensor, seen: Tensor, decay: float) -> None:
        """Add to `score` [B, G, C] in place what each slot received: probabilities [B, G, H/G, Q, C], seen [B, G, Q, C].

        Of a class whose score is `carried`: one that has this function.
        """
        raise NotImplementedError("this KV score has no `carry`")


class EntryMerge(Method):
    """What becomes of cache entries that do not stay: `merge` gives keys and values [B, G, K, d].

    With `counts` also size and worth [B, G, K].
    """

    what = "way to merge entries"
    joins: ClassVar[bool] = True  # else entries stay as they are, and `merge` is not asked
    counts: ClassVar[bool] = False  # survivors count in attention as all that they stand for

    def went(self, view: View) -> Tensor:
        """Which of what stays each entry goes to [B, 1 or G, S] int64, of `keys`, `values`, `index` and `entry`; -1 for none.

        Of a class that reads `went`; layers that share a choice share this.
        """
        raise NotImplementedError(f"{self.what} {self.name!r} reads where entries went, but has no `went`")

    def merge(self, view: View) -> Any:
        """Keys and values [B, G, K, d], with `counts` also size and worth [B, G, K]; of a class that `joins`."""
        raise NotImplementedError(f"{self.what} {self.name!r} joins, but has no `merge`")


class Budget(Method):
    """How layers share the capacity. Known beforehand: `entries`; or, `adaptive`, from each prompt's statistics: `shares`."""

    what = "way to share the budget"
    adaptive: ClassVar[bool] = False
    by_layer: ClassVar[bool] = False  # layers may hold different numbers of entries whatever the prompt
    from_score: ClassVar[str] = ""  # the KV score whose second result is the statistic, where `spread` is not
    alone: ClassVar[str] = ""  # the option that files and fingerprints hold in the method's place, where there is one

    def problems(self, kv: Any) -> Iterator[str]:
        """What this way does not go with in the bound `kv`."""
        if self.from_score not in ("", kv.score.name):
            yield f"budgets={self.name!r} needs score={self.from_score!r}, got {kv.score.name!r}"

    def entries(self, mean: int, window: int, prompt: int, depth: int) -> list[int]:
        """Of each layer, where a layer has `mean` on average, `window` of them protected, and the prompt has `prompt` tokens."""
        return [mean] * depth

    def spread(self, view: View) -> Tensor:
        """A layer's statistic [B] float32."""
        raise NotImplementedError(f"{self.what} {self.name!r} adapts, but has neither `spread` nor `from_score`")

    def shares(self, view: View) -> Tensor:
        """Each layer's share [B, L] float32 of the sum, from `statistic` [B, L, n]."""
        raise NotImplementedError(f"{self.what} {self.name!r} adapts, but has no `shares`")
