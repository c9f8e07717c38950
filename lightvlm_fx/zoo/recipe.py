"""What a family says about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

Config = Callable[[int], dict[str, Any]]
Batch = dict[str, Tensor]
Picture = Callable[[Generator], Batch]


@dataclass(frozen=True)
class Recipe:
    """One family, as data.

    config: number of decoder layers -> keyword arguments of the family's config.
    span: the ids one picture takes in `input_ids`, markers included.
    picture: random generator -> the tensors of one picture; dimension 0 is joined over all pictures.
    finish: the batch -> the tensors its processor adds or changes in it, such as the kind of each token.
    per_row: tensors are (row, picture of that row, ...), rows with fewer pictures filled with zeros.
    caveat: what eager transformers itself does not do for this family.
    """

    config: Config
    span: tuple[int, ...]
    picture: Picture
    finish: Callable[[Batch], Batch] = lambda batch: {}
    per_row: bool = False
    caveat: str = ""
