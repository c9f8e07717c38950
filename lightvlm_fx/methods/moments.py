"""When a bounded cache chooses what stays. A closed set: buffers, steps and the stages of artifacts are made for each of these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.base import Method


class Moment(Method):
    """A moment, and what it asks of buffers and steps."""

    what = "moment"
    source = "patterns S1 to S6 of bounded caches"
    stepping: ClassVar[bool] = False  # the choice goes on while decoding
    overwrites: ClassVar[bool] = False  # a new entry takes the slot of one that goes; else it is appended
    fixed: ClassVar[bool] = False  # buffers have one size from the first step to the last
    masks: ClassVar[bool] = False  # what goes is masked, in buffers that grow
    by_turn: ClassVar[bool] = False  # nothing goes: each turn of a dialogue chooses what is read
    text: ClassVar[str]  # when, with options in braces

    def problems(self, kv: Any) -> Iterator[str]:
        """What this moment does not go with in the bound `kv`, the gravest first."""
        if kv.score.asks != self.by_turn or (self.by_turn and kv.of == "all"):
            yield "when='turn' reads the visual entries that a question asks for; it needs score='question' and of='visual'"

    @property
    def period(self) -> int:
        """Steps between two choices, whose entries are appended meanwhile; 0: none."""
        return 0

    @property
    def said(self) -> str:
        """When, as `explain` puts it."""
        return self.text.format(**dict(self))


class Prefill(Moment):
    """Once, after the prompt; answers are appended."""

    name = "prefill"
    text = "after the prompt, then answers are appended"


class Stepping(Moment):
    """A moment that goes on while decoding."""

    stepping = True

    def problems(self, kv: Any) -> Iterator[str]:
        from lightvlm_fx.methods.registry import ENTRY_SCORES

        yield from super().problems(kv)
        when = f"when={self.name!r}"
        if not kv.score.steps:
            running = ", ".join(kind.name for kind in ENTRY_SCORES.all() if kind.steps)
            yield f"score {kv.score.name!r} reads the prompt only; use when='prefill', or a score of {running}"
        if kv.of == "visual" or kv.budgets.adaptive:
            yield f"{when} needs capacities known beforehand; use of='all', and budgets uniform, pyramid or a list"
        if not self.overwrites and isinstance(kv.capacity, float):
            yield f"{when} needs one capacity for all rows of a batch: a count, not the share {kv.capacity}"


class Step(Stepping):
    """Every step: a new entry replaces the one that is worth least."""

    name = "step"
    text = "at every step"
    overwrites = fixed = True


class Mask(Stepping):
    """As `step`, but entries are masked and not replaced: the reference for tests."""

    name = "mask"
    text = "at every step, by a mask"
    masks = True


class Periodic(Stepping):
    """Every so many steps."""

    name = "periodic"
    text = "every {every} steps"
    fixed = True
    every: Positive = 64

    @property
    def period(self) -> int:
        return self.every


class Turn(Moment):
    """Nothing is dropped: at each turn of a dialogue a choice of visual entries is read."""

    name = "turn"
    text = "to what each question of a dialogue asks for, nothing is dropped"
    by_turn = True

    def problems(self, kv: Any) -> Iterator[str]:
        yield from super().problems(kv)
        if kv.merge.joins and not kv.merge.counts:
            yield (f"merge={kv.merge.name!r} is for entries that are dropped, but when='turn' drops none; "
                   "use 'none', or 'counted' for those not read")  # fmt: skip


MOMENTS: tuple[type[Moment], ...] = (Prefill, Step, Mask, Periodic, Turn)
