"""The tokens of one answer as text, piece by piece as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"  # what decoders make of half a character


class AnswerText:
    """All pieces of an answer together are its text, without white space around it, up to the first of the strings `stop`."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self.decode, self.stop = decode, stop
        self.stopped = False  # by one of `stop`
        self._tokens: list[int] = []
        self._before, self._read = 0, 0  # tokens[_before:_read] were read, and say how the next ones are written
        self._held, self._begun = "", False

    def add(self, token: int) -> str:
        """What can be said after one more token; empty where that depends on the next ones."""
        self._tokens.append(token)
        new = self._decoded()
        if not new or new.endswith(BROKEN):
            return ""
        self._before, self._read = self._read, len(self._tokens)
        return self._piece(new)

    def end(self) -> str:
        """The rest."""
        if self.stopped:
            return ""
        return self._piece(self._decoded()) + self._flush()

    def _decoded(self) -> str:
        """What the tokens that were not read yet add."""
        old = self.decode(self._tokens[self._before : self._read])
        return self.decode(self._tokens[self._before :])[len(old) :]

    def _piece(self, new: str) -> str:
        held = self._held + new
        if not self._begun:
            held = held.lstrip()
        self._held = held
        found = min((at for at in (held.find(s) for s in self.stop) if at >= 0), default=-1)
        if found >= 0:
            self.stopped, self._held = True, held[:found]
            return self._flush()
        return self._give(len(held[: len(held) - self._begins_a_stop()].rstrip()))

    def _begins_a_stop(self) -> int:
        """How many of the last characters may be the beginning of a string that ends the answer."""
        longest = max(map(len, self.stop), default=1) - 1
        ends = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in ends if any(s.startswith(self._held[-n:]) for s in self.stop)), 0)

    def _flush(self) -> str:
        return self._give(len(self._held.rstrip()))

    def _give(self, length: int) -> str:
        piece, self._held = self._held[:length], self._held[length:]
        self._begun = self._begun or bool(piece)
        return piece
