"""Every family of the zoo. A file of this folder is a kin of families: its `FAMILIES` holds the recipes, by model type.

A new file is found by itself.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

from lightvlm_fx.zoo.recipe import Recipe


def collect(kins: Iterable[ModuleType]) -> dict[str, Recipe]:
    """The recipes of all files. Raises ValueError for a family that two of them have."""
    found: dict[str, Recipe] = {}
    homes: dict[str, str | None] = {}
    for kin in kins:
        for family, recipe in kin.FAMILIES.items():
            if family in found:
                raise ValueError(f"two files have a recipe of {family!r}: {homes[family]} and {kin.__file__}")
            found[family], homes[family] = recipe, kin.__file__
    return found


FAMILIES = collect(import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__))
