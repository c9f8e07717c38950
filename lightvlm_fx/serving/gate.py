"""How many requests are in the house."""

from __future__ import annotations

from lightvlm_fx.serving.problems import Refusal


class Slot:
    """The place of one request, given back once."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self._held = gate, True

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._gate.inside -= 1


class Gate:
    """Takes in at most `most` requests. For one thread."""

    def __init__(self, most: int) -> None:
        self.most, self.inside = most, 0

    def enter(self) -> Slot:
        """Raises Refusal (503) where all places are taken."""
        if self.inside >= self.most:
            raise Refusal(503, f"{self.inside} requests are being answered or wait, no more are taken; try again soon",
                          code="queue_full", retry_after=1)  # fmt: skip
        self.inside += 1
        return Slot(self)
