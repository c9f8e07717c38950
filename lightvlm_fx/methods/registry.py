"""Methods by name, loaded on use: a file of this package each, and what other distributions offer.

Another distribution offers methods as entry points of the group "lightvlm_fx.methods", each the path of a class.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Annotated, Generic, TypeVar

from pydantic import BeforeValidator, PlainSerializer

from lightvlm_fx.errors import ScheduleError, UnknownName, shown
from lightvlm_fx.methods.base import Budget, Combine, EntryMerge, EntryScore, Method, TokenCount, TokenScore
from lightvlm_fx.methods.moments import MOMENTS, Moment

GROUP = "lightvlm_fx.methods"
M = TypeVar("M", bound=Method)


@functools.cache
def offered() -> tuple[tuple[type[Method], str], ...]:
    """Methods of other distributions, each with its owner. Raises ScheduleError for an entry point that is no method."""
    found = []
    for point in entry_points(group=GROUP):
        kind, owner = point.load(), point.dist.name if point.dist else point.value
        if not (isinstance(kind, type) and issubclass(kind, Method)):
            raise ScheduleError(f"the entry point {point.name!r} of {owner} is {shown(kind)}, no class of lightvlm_fx.methods.base.Method")
        found.append((kind, owner))
    return tuple(found)


class Registry(Generic[M]):
    """The methods of one kind, whose own ones are the files of a package."""

    def __init__(self, base: type[M], package: str) -> None:
        self.base, self.package = base, f"{__package__}.{package}"

    @functools.cached_property
    def owners(self) -> dict[str, tuple[str, str]]:
        """Of each name its module and class, or who offers it. Raises ScheduleError for a name that two offer."""
        files = pkgutil.iter_modules(importlib.import_module(self.package).__path__)
        found = {file.name.replace("_", "-"): (f"{self.package}.{file.name}", "lightvlm_fx") for file in files}
        for kind, owner in offered():
            if issubclass(kind, self.base):
                if kind.name in found:
                    raise ScheduleError(
                        f"two offer a {kind.what} named {kind.name!r}: {found[kind.name][1]} and {owner}; remove one of the distributions"
                    )
                found[kind.name] = (kind.__module__, owner)
        return found

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.owners)

    def get(self, name: object) -> type[M]:
        """The class of that name. Raises UnknownName."""
        if not isinstance(name, str) or name not in self.owners:
            raise UnknownName.of(self.base.what, name, self.owners)
        return self._load(name)

    @functools.cache  # noqa: B019  (registries live as long as the process)
    def _load(self, name: str) -> type[M]:
        module = importlib.import_module(self.owners[name][0])
        return next(x for x in vars(module).values() if isinstance(x, type) and issubclass(x, self.base) and vars(x).get("name") == name)

    def all(self) -> list[type[M]]:
        return [self.get(name) for name in self.owners]

    def make(self, value: object) -> M:
        """A method from itself, its name, or a table {name, options}. Raises UnknownName or ScheduleError."""
        if isinstance(value, self.base):
            return value
        if isinstance(value, dict) and "name" in value:
            return self.get(value["name"])(**{key: option for key, option in value.items() if key != "name"})
        return self.get(value)()

    def owner_of(self, option: str) -> list[str]:
        """Names of the methods that have an option of that name."""
        return [kind.name for kind in self.all() if option in kind.model_fields]


TOKEN_SCORES = Registry(TokenScore, "token_scores")  # type: ignore[type-abstract]
COUNTS = Registry(TokenCount, "counts")  # type: ignore[type-abstract]
COMBINES = Registry(Combine, "combines")
ENTRY_SCORES = Registry(EntryScore, "entry_scores")  # type: ignore[type-abstract]
ENTRY_MERGES = Registry(EntryMerge, "entry_merges")
BUDGETS = Registry(Budget, "budgets")


class _Moments(Registry[Moment]):
    """Moments are a closed set: state, buffers and stages of artifacts know each of them."""

    def __init__(self) -> None:
        super().__init__(Moment, "moments")

    @functools.cached_property
    def owners(self) -> dict[str, tuple[str, str]]:
        return {kind.name: (kind.__module__, "lightvlm_fx") for kind in MOMENTS}


WHEN = _Moments()
SERIALIZED = PlainSerializer(lambda method: method.data)
AnyTokenScore = Annotated[TokenScore, BeforeValidator(TOKEN_SCORES.make), SERIALIZED]
AnyCount = Annotated[TokenCount, BeforeValidator(COUNTS.make), SERIALIZED]
AnyCombine = Annotated[Combine, BeforeValidator(COMBINES.make), SERIALIZED]
AnyEntryScore = Annotated[EntryScore, BeforeValidator(ENTRY_SCORES.make), SERIALIZED]
AnyEntryMerge = Annotated[EntryMerge, BeforeValidator(ENTRY_MERGES.make), SERIALIZED]
AnyMoment = Annotated[Moment, BeforeValidator(WHEN.make), SERIALIZED]
