"""How many requests an address may make a minute."""

from __future__ import annotations

import time

from lightvlm_fx.serving.problems import Refusal

MOST = 10_000  # addresses that are remembered; those that have their full share again are forgotten first


class Rate:
    """A full share of `per_minute` requests for every address, filled up evenly; 0: no limit. For one thread."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: dict[str, tuple[float, float]] = {}  # requests left at a time

    def take(self, address: str, now: float | None = None) -> None:
        """Count one request. Raises Refusal (429) where the address has none left."""
        if not self.per_minute:
            return
        now = time.monotonic() if now is None else now
        left = self._now(self._left.pop(address, (self.per_minute, now)), now)
        if left < 1:
            self._left[address] = (left, now)
            wait = (1 - left) * 60 / self.per_minute
            raise Refusal(429, f"more than {self.per_minute} requests a minute; try again in {wait:.0f} s",
                          code="rate_limit_exceeded", retry_after=wait)  # fmt: skip
        if len(self._left) >= MOST:
            self._forget(now)
        self._left[address] = (left - 1, now)

    def _now(self, entry: tuple[float, float], now: float) -> float:
        left, then = entry
        return min(float(self.per_minute), left + (now - then) * self.per_minute / 60)

    def _forget(self, now: float) -> None:
        """Drop addresses with a full share, and where none has one, the address that was heard of first."""
        full = [address for address, entry in self._left.items() if self._now(entry, now) >= self.per_minute]
        for address in full or [next(iter(self._left))]:
            del self._left[address]
