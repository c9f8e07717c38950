"""What every target's exporter does: write one stage after the other into a folder, and at the end what belongs to all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lightvlm_fx.artifact.targets import Target


@dataclass
class StageExport:
    """One stage: what is exported, a call of it, and which dimensions of its inputs are symbolic; `traced`: inputs to trace it with."""

    module: nn.Module
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    dynamic: dict[str, dict[int, str]]
    ranges: dict[str, tuple[int, int]]  # the least and the most of a symbolic size
    traced: dict[str, Any]


class Exporter(ABC):
    """Of one artifact, written to `folder` for `target`; `dtype` as in `lightvlm.export`. `compiled`: also for this machine."""

    def __init__(self, target: Target, folder: Path, dtype: str, compiled: bool) -> None:
        self.target, self.folder, self.dtype, self.compiled = target, folder, dtype, compiled

    @abstractmethod
    def write(self, name: str, suffix: str, stage: StageExport) -> dict[str, Any]:
        """Write the stage `name` of the bucket that `suffix` tells apart; its entry of the manifest.

        Raises CaptureError or NotSupported where it cannot be written.
        """

    def finish(self, buckets: list[dict[str, Any]]) -> dict[str, Any]:
        """Write what belongs to the stages of all `buckets`; what the manifest says of it."""
        return {}
