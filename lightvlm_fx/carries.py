"""How a decoding step brings running scores up to date: one function a KV score, by its name.

The classes of KV scores enter theirs; attention over bounded caches asks for it by the name that its graph holds.
"""

from __future__ import annotations

from collections.abc import Callable

CARRY: dict[str, Callable[..., None]] = {}
