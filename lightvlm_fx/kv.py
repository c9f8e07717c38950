"""How large every layer's KV cache may get, and which entries stay. Data only, the `[kv]` table of a schedule."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lightvlm_fx.errors import ScheduleError, UnknownName, shown
from lightvlm_fx.frozen import MOST, Count, Frozen, Number, Positive, one_of

_When = Literal["prefill", "step", "mask", "periodic", "turn"]
_KvScore = Literal["age", "attention", "marks", "window", "text", "density", "elite", "question"]
_Merge = Literal["none", "pivot", "counted"]
_Budgets = Literal["uniform", "pyramid", "density", "entropy", "strength"]
WHEN: tuple[str, ...] = get_args(_When)
KV_SCORES: tuple[str, ...] = get_args(_KvScore)
MERGES: tuple[str, ...] = get_args(_Merge)
BUDGETS: tuple[str, ...] = get_args(_Budgets)
ADAPTIVE = ("density", "entropy", "strength")
LEAST_WEIGHT = 1e-100  # of a layer among others: sums and quotients of weights stay finite
RUNNING = ("age", "attention", "marks")  # scores that every decoding step brings up to date


def _capacity(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ScheduleError(f"capacity must be a count of entries or a share of the prompt in (0, 1], got {shown(value)}")
    if isinstance(value, float) and not 0 < value <= 1:
        raise ScheduleError(f"capacity as a share of the prompt must be in (0, 1], got {value!r}; write a whole number for a count")
    if isinstance(value, int) and value < 1:
        raise ScheduleError(f"capacity as a count must be at least 1 entry, got {shown(value)}")
    if value > MOST:
        raise ScheduleError(f"capacity as a count must be at most {MOST} entries, got {shown(value)}")
    return float(value) if isinstance(value, float) else int(value)


def _weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and LEAST_WEIGHT <= value <= 1 / LEAST_WEIGHT


def _budgets(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if not value or not all(map(_weight, value)):
            span = f"of {LEAST_WEIGHT:g} to {1 / LEAST_WEIGHT:g}"
            raise ScheduleError(f"budgets as a list must hold one positive weight a layer, got {shown(value)}; give numbers {span}")
        return tuple(map(float, value))
    if not isinstance(value, str) or value not in BUDGETS:
        raise UnknownName.of("way to share the budget", value, BUDGETS)
    return value


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ScheduleError(f"kernel must be odd, got {kernel}")
    return kernel


Capacity = Annotated[int | float, BeforeValidator(_capacity)]
When = Annotated[_When, one_of("moment", WHEN)]
KvScore = Annotated[_KvScore, one_of("KV score", KV_SCORES)]
KvScoreOrNone = Annotated[_KvScore | Literal[""], one_of("KV score", ("", *KV_SCORES))]
Heads = Annotated[Literal["each", "shared"], one_of("selection", ("each", "shared"))]
Budgets = Annotated[_Budgets | tuple[float, ...], BeforeValidator(_budgets)]
Merge = Annotated[_Merge, one_of("way to merge entries", MERGES)]
Kernel = Annotated[Positive, AfterValidator(_odd)]
Alpha = Annotated[Number, Field(gt=0, le=1)]
VisualShare = Annotated[Number, Field(ge=0, lt=1)]


class Kv(Frozen):
    """A bound on every layer's cache.

    `capacity` is what a layer holds after the prompt, protected entries included: a count, or a share of the
    row's prompt, but never less than is protected and one more. With `of="visual"` only visual entries count and only they are dropped.
    """

    capacity: Capacity
    of: Annotated[Literal["all", "visual"], one_of("part of the cache", ("all", "visual"))] = "all"
    # prefill: once, behind the prompt, answers are appended; step: a new entry replaces the lowest;
    # mask: as step, but entries are masked, not replaced (the reference); periodic: every `every` steps;
    # turn: nothing is dropped, and at each turn of a dialogue a choice of visual entries is read
    when: When = "step"
    score: KvScore = "attention"
    prompt: KvScoreOrNone = ""  # chooses behind the prompt, if not `score`
    heads: Heads = "each"
    budgets: Budgets = "uniform"
    sinks: Count = 4  # first entries of the row that always stay
    recent: Count = 32  # last entries that always stay
    window: Positive = 32  # window, marks: last queries that score
    kernel: Kernel = 5  # window: width of the average over neighbours
    alpha: Alpha = 0.9  # elite: share of the largest weight that makes a query elite
    visual_share: VisualShare = 0  # share of the capacity that is the picture's, and stays its own
    text_first: bool = False  # no visual entry stays before a text entry goes
    # what becomes of dropped entries (turn: of those not read): pivot, their values join the most alike survivor of their
    # modality, half-way; counted, visual ones are averaged into the most alike survivor of their image, which then counts as all
    merge: Merge = "none"
    every: Positive = 64  # periodic

    @model_validator(mode="after")
    def _fits_together(self) -> Kv:
        if isinstance(self.capacity, int) and self.of == "all":
            self.check(self.capacity)
        for wrong, message in self._mismatches():
            if wrong:
                raise ScheduleError(message)
        return self

    def _mismatches(self) -> list[tuple[bool, str]]:
        stepping, turn, when = self.when not in ("prefill", "turn"), self.when == "turn", f"when={self.when!r}"
        return [
            (turn != (self.score == "question") or (turn and self.of == "all"),
             "when='turn' reads the visual entries that a question asks for; it needs score='question' and of='visual'"),
            (stepping and self.score not in RUNNING,
             f"score {self.score!r} reads the prompt only; use when='prefill', or a score of {', '.join(RUNNING)}"),
            (stepping and (self.of == "visual" or self.adaptive),
             f"{when} needs capacities known beforehand; use of='all', and budgets uniform, pyramid or a list"),
            ((self.budgets == "strength" and self.score != "elite") or (self.score == "elite" and self.of == "all"),
             "score='elite' ranks visual entries and needs of='visual'; budgets='strength' needs score='elite'"),
            (self.when in ("mask", "periodic") and isinstance(self.capacity, float),
             f"{when} needs one capacity for all rows of a batch: a count, not the share {self.capacity}"),
            (bool(self.prompt) and not stepping,
             f"prompt={self.prompt!r} is for caches whose score the steps carry on, but {when} chooses once; name it as score="),
            (self.prompt in ("elite", "question"), f"prompt={self.prompt!r} ranks visual entries only; use another score"),
            (self.visual_share > 0 and (not stepping or self.score == "age" or self.text_first),
             (f"visual_share={self.visual_share} keeps pictures while text goes, step by step: it needs when='step', 'mask' or 'periodic', "
              "score='attention' or 'marks', and text_first=False")),
            (turn and self.merge == "pivot",
             "merge='pivot' is for entries that are dropped, but when='turn' drops none; use 'none', or 'counted' for those not read"),
        ]  # fmt: skip

    @property
    def shared(self) -> bool:
        """Whether all KV heads of a layer keep the same entries."""
        return self.heads == "shared" or {self.score, self.prompt} & {"age", "elite", "question"} != set()

    @property
    def adaptive(self) -> bool:
        """Whether each prompt shares the budget over the layers anew."""
        return self.budgets in ADAPTIVE

    def check(self, capacity: int, layer: int | None = None) -> None:
        """Raise ScheduleError for a capacity that the protected entries fill."""
        least, pictures = self.sinks + self.recent + 1, self.pictures(capacity)
        if capacity - pictures < least:
            where = "" if layer is None else f" of layer {layer}"
            but = f", less {pictures} for pictures," if pictures else ""
            raise ScheduleError(
                f"capacity {capacity}{where}{but} is below sinks + recent + 1 = {self.sinks} + {self.recent} + 1 = {least}; "
                f"raise the capacity or protect fewer entries{', or lower visual_share' if pictures else ''}"
            )

    def pictures(self, capacity: int) -> int:
        """How many of `capacity` entries are reserved for pictures."""
        return math.floor(self.visual_share * capacity + 0.5)

    def capacities(self, prompt: int, depth: int) -> list[int]:
        """Entries that each of `depth` layers holds for a prompt of `prompt` tokens (of="visual": visual tokens).

        A share that is less than what is protected keeps that. Raises ScheduleError where a count leaves a layer less, or a list
        has another length.
        """
        out = self._shared_out(prompt, depth)
        for layer, capacity in enumerate(out):
            if isinstance(self.capacity, float):
                out[layer] = max(capacity, self.least)
            elif self.of == "all":
                self.check(capacity, layer)
            elif capacity < 1:
                raise ScheduleError(f"capacity {self.capacity} leaves layer {layer} no visual entry of {prompt}; raise it")
        return out

    def raised(self, prompts: Sequence[int], depth: int) -> str:
        """What to tell where a share of one of these prompts is less than what is protected; empty where none is."""
        if isinstance(self.capacity, int) or all(n >= self.least for prompt in prompts for n in self._shared_out(prompt, depth)):
            return ""
        what = "1 visual entry" if self.of == "visual" else f"sinks + recent + 1 = {self.sinks} + {self.recent} + 1"
        if self.visual_share:
            what += f" entries beside those for pictures, {self.least} in all"
        return f"capacity={self.capacity} of a short row is less than {what}; in each layer such a row keeps that many, or all that it has"

    @property
    def least(self) -> int:
        """The least that a layer may hold: what is protected, and one more; visual entries, of="visual": 1."""
        if self.of == "visual":
            return 1
        wanted = self.sinks + self.recent + 1
        most = math.ceil((wanted + 1) / (1 - self.visual_share))
        return bisect_left(range(most), wanted, key=lambda n: n - self.pictures(n))

    def _shared_out(self, prompt: int, depth: int) -> list[int]:
        """The capacity over the layers, however little that leaves one of them."""
        mean = self.capacity if isinstance(self.capacity, int) else max(1, math.floor(self.capacity * prompt + 0.5))
        if isinstance(self.budgets, tuple):
            if len(self.budgets) != depth:
                raise ScheduleError(f"budgets lists {len(self.budgets)} layers, but the decoder has {depth}; give one weight a layer")
            scale = mean * depth / sum(self.budgets)
            out = [round(scale * weight) for weight in self.budgets]
        elif self.budgets == "pyramid":
            out = _pyramid(mean, self.recent, prompt, depth)
        else:
            out = [mean] * depth
        return out


def _pyramid(mean: int, window: int, prompt: int, depth: int, beta: int = 20) -> list[int]:
    """Falling linearly with depth around `mean` (PyramidKV, arXiv 2406.02069); uniform where the prompt is short."""
    scored = mean - window
    low = max(1, scored // beta)
    high = 2 * scored - low
    if high >= prompt - window:
        high = prompt - window
        low = 2 * scored - high
    if depth == 1 or low < 0 or prompt < mean or high < low:
        return [mean] * depth
    step = (high - low) / (depth - 1)
    return [round(high - layer * step) + window for layer in range(depth)]
