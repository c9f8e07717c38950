"""When a bounded cache chooses what stays. A closed set: buffers, steps and the stages of artifacts are made for each of these."""

from __future__ import annotations

from typing import ClassVar

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


class Step(Moment):
    """Every step: a new entry replaces the one that is worth least."""

    name = "step"
    text = "at every step"
    stepping = overwrites = fixed = True


class Mask(Moment):
    """As `step`, but entries are masked and not replaced: the reference for tests."""

    name = "mask"
    text = "at every step, by a mask"
    stepping = masks = True


class Periodic(Moment):
    """Every so many steps."""

    name = "periodic"
    text = "every {every} steps"
    stepping = fixed = True
    every: Positive = 64

    @property
    def period(self) -> int:
        return self.every


class Turn(Moment):
    """Nothing is dropped: at each turn of a dialogue a choice of visual entries is read."""

    name = "turn"
    text = "to what each question of a dialogue asks for, nothing is dropped"
    by_turn = True


MOMENTS: tuple[type[Moment], ...] = (Prefill, Step, Mask, Periodic, Turn)
