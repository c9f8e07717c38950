"""How large every layer's KV cache may get, and which entries stay. Data only, the `[kv]` table of a schedule."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from lightvlm_fx.errors import ScheduleError, shown
from lightvlm_fx.frozen import MOST, Count, Frozen, Number, Positive, one_of, usual
from lightvlm_fx.methods.base import Budget
from lightvlm_fx.methods.budgets.uniform import Uniform
from lightvlm_fx.methods.entry_merges.none import NoMerge
from lightvlm_fx.methods.entry_scores.attention import Attention
from lightvlm_fx.methods.flat import canonical, nested
from lightvlm_fx.methods.moments import MOMENTS, Step
from lightvlm_fx.methods.registry import BUDGETS, ENTRY_MERGES, ENTRY_SCORES, WHEN, AnyEntryMerge, AnyEntryScore, AnyMoment

FLAT = {"window": 32, "kernel": 5, "alpha": 0.9, "every": 64}  # of a bound, in version 0.1
# In every fingerprint of a bound; a later field only where it is not at its default.
HASHED = ("capacity", "of", "when", "score", "prompt", "heads", "budgets", "sinks", "recent", "visual_share", "text_first", "merge")
PARTS = {"when": WHEN, "score": ENTRY_SCORES, "prompt": ENTRY_SCORES, "budgets": BUDGETS, "merge": ENTRY_MERGES}


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


def _budget(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return BUDGETS.make({"name": "weights", "weights": value})
    return BUDGETS.make(value)


def _or_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value else value  # version 0.1 wrote "" where there was none


def listed(names: Sequence[str]) -> str:
    """Names as a message offers them: 'a', 'b' or 'c'."""
    *some, last = map(repr, names)
    return f"{', '.join(some)} or {last}" if some else last


Capacity = Annotated[int | float, BeforeValidator(_capacity)]
Heads = Annotated[Literal["each", "shared"], one_of("selection", ("each", "shared"))]
AnyBudget = Annotated[Budget, BeforeValidator(_budget), PlainSerializer(lambda budget: budget.data)]
VisualShare = Annotated[Number, Field(ge=0, lt=1)]


class Kv(Frozen):
    """A bound on every layer's cache.

    `capacity` is what a layer holds after the prompt, protected entries included: a count, or a share of the
    row's prompt, but never less than is protected and one more. With `of="visual"` only visual entries count and only they are dropped.
    """

    capacity: Capacity
    of: Annotated[Literal["all", "visual"], one_of("part of the cache", ("all", "visual"))] = "all"
    when: AnyMoment = Step()
    score: AnyEntryScore = Attention()
    prompt: Annotated[AnyEntryScore | None, BeforeValidator(_or_none)] = None  # chooses after the prompt, if not `score`
    heads: Heads = "each"
    budgets: AnyBudget = Uniform()
    sinks: Count = 4  # first entries of the row that always stay
    recent: Count = 32  # last entries that always stay
    visual_share: VisualShare = 0  # share of the capacity that is the picture's, and stays its own
    text_first: bool = False  # no visual entry stays before a text entry goes
    layers: Positive = 1  # so many in a row, between two cuts, keep what the first of them chooses after the prompt
    merge: AnyEntryMerge = NoMerge()  # what becomes of dropped entries (when="turn": of those not read)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("budgets"), list | tuple):
            data = data | {"budgets": _budget(data["budgets"])}
        return nested(data, usual(cls), PARTS, FLAT)

    @model_validator(mode="after")
    def _fits_together(self) -> Kv:
        if isinstance(self.capacity, int) and self.of == "all":
            self.check(self.capacity)
        for problem in self._problems():
            raise ScheduleError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        """What does not go together: what the chosen methods say, then what the fields do."""
        for method in (self.when, self.score, self.budgets):
            yield from method.problems(self)
        if self.prompt is not None:
            given = f"prompt={self.prompt.name!r}"
            if not self.when.stepping:
                yield f"{given} is for caches whose score the steps carry on, but when={self.when.name!r} chooses once; name it as score="
            if self.prompt.visual_only:
                yield f"{given} ranks visual entries only; use another score"
        if self.layers > 1 and (self.budgets.adaptive or self.budgets.by_layer or self.when.by_turn or not self.shared):
            yield (f"layers={self.layers} is one choice for layers that keep equally many entries, for all heads and the whole answer: it "
                   "needs heads='shared', budgets='uniform' and a when other than 'turn'")  # fmt: skip
        if self.visual_share > 0 and (not self.when.stepping or not self.score.carried or self.text_first):
            whens = listed([kind.name for kind in MOMENTS if kind.stepping])
            scores = listed([kind.name for kind in ENTRY_SCORES.all() if kind().carried])
            yield (f"visual_share={self.visual_share} keeps pictures while text goes, step by step: it needs when={whens}, "
                   f"score={scores}, and text_first=False")  # fmt: skip

    @property
    def canonical(self) -> dict[str, Any]:
        """What the fingerprint is taken of."""
        out = canonical(self.hashed(HASHED), {part: getattr(self, part) for part in PARTS if part in HASHED}, FLAT)
        if self.budgets.alone:
            out["budgets"] = out.pop(f"budgets.{self.budgets.alone}")
        return out

    @property
    def shared(self) -> bool:
        """Whether all KV heads of a layer keep the same entries."""
        return self.heads == "shared" or any(score is not None and score.one_choice for score in (self.score, self.prompt))

    @property
    def adaptive(self) -> bool:
        """Whether each prompt shares the budget over the layers anew."""
        return self.budgets.adaptive

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
        return self.budgets.entries(mean, self.recent, prompt, depth)
