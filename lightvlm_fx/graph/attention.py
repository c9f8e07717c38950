"""The arguments of a layer's attention in a graph, by their names: of the marker, and of what it is lowered to."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import fx


class Marker(NamedTuple):
    """Arguments of `lightvlm::attention`, which ops/attention.py describes."""

    q: Any
    k: Any
    v: Any
    mask: Any
    scale: float
    layer: int
    window: int
    softcap: float
    size: Any = None

    @staticmethod
    def of(node: fx.Node) -> Marker:
        return Marker(*node.args)

    @property
    def lowered(self) -> Attend:
        return Attend(self.q, self.k, self.v, self.mask, self.scale, self.softcap, self.size)

    @property
    def args(self) -> tuple[Any, ...]:
        """As a node has them: without a size where there is none."""
        return tuple(self) if self.size is not None else tuple(self)[:-1]


class Attend(NamedTuple):
    """Arguments of `attend`."""

    q: Any
    k: Any
    v: Any
    mask: Any
    scale: float
    softcap: float = 0.0
    size: Any = None

    @staticmethod
    def of(node: fx.Node) -> Attend:
        return Attend(*node.args)

    @property
    def args(self) -> tuple[Any, ...]:
        """As a node has them: without a size where there is none."""
        return tuple(self) if self.size is not None else tuple(self)[:-1]
