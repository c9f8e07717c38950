"""What the parts of a schedule share: frozen pydantic models whose errors read like ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from lightvlm_fx.errors import ScheduleError, UnknownName, shown

# Nothing is taken for something else: "3", True and 3.0 are no integers, "off" is no switch.
STRICT = ConfigDict(strict=True, allow_inf_nan=False)
MOST = 2**31 - 1  # the largest count that any field takes
Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):  # pydantic takes whatever has __float__: NumPy's True, a Decimal
        raise PydanticCustomError("float_type", "Input should be a valid number")
    return value


# 0.0 for -0.0: they are equal, and must print alike
Number = Annotated[float, BeforeValidator(_number), AfterValidator(lambda x: x + 0.0)]


def usual(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a model, each with its default; None where there is none."""
    return {name: None if field.is_required() else field.get_default() for name, field in model.model_fields.items()}


class Frozen(BaseModel):
    """Immutable; unknown fields are errors. Equal where all fields are, of the same type: 1 is a count and 1.0 a share."""

    model_config = ConfigDict(frozen=True, extra="forbid") | STRICT

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            kind = type(self)
            raise readable(error, f"a valid {kind.__name__.lower()}", list(kind.model_fields)) from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values in some fields, checked as a new one is: pydantic's own takes anything.

        Raises ScheduleError or UnknownName.
        """
        if not update:
            return super().model_copy(deep=deep)
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | dict(update))

    @property
    def changed(self) -> dict[str, Any]:
        """Fields that differ from their defaults."""
        usual = {name: field.get_default() for name, field in type(self).model_fields.items()}
        return {name: value for name, old in usual.items() if (value := getattr(self, name)) != old or type(value) is not type(old)}

    def hashed(self, first: Collection[str]) -> dict[str, Any]:
        """For a fingerprint: the fields that it had `first`, and of later ones those that differ from their defaults.

        So a new field changes no old fingerprint.
        """
        return self.model_dump(mode="json", include={*first, *self.changed})

    def unchecked(self, **update: Any) -> Self:
        """`model_copy` without checks: for forms that the package makes of a valid schedule for itself."""
        return super().model_copy(update=update)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._exact() == other._exact()

    def __hash__(self) -> int:
        return hash((type(self), self._exact()))

    def _exact(self) -> tuple[Any, ...]:
        values = [getattr(self, name) for name in type(self).model_fields]
        return tuple((type(value) if value else None, value) for value in values)  # nothing is nothing: 0 is 0.0


def one_of(what: str, known: tuple[str, ...]) -> BeforeValidator:
    """A validator that suggests the nearest of the `known` names."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            raise UnknownName.of(what, value, known)
        return value

    return BeforeValidator(check)


def as_tuple(value: Any) -> Any:
    """A list as a tuple, anything else as it is: TOML and JSON have lists only."""
    return tuple(value) if isinstance(value, list) else value


def readable(error: ValidationError, what: str, fields: list[str]) -> ScheduleError | UnknownName:
    """Pydantic's findings in one ScheduleError, which names the fields; what our own validators raised is passed on."""
    lines = []
    for item in error.errors():
        own, loc = item.get("ctx", {}).get("error"), item["loc"]
        where = ".".join(map(str, loc))[:300]
        if isinstance(own, ScheduleError | UnknownName):
            if loc[:1] == ("cuts",):
                own.add_note(f"in cut {loc[1]}")
            elif loc and not re.search(rf"\b{re.escape(str(loc[0]))}\b", str(own)):
                own.args = (f"{own}\n  field: {where}",)
            return own
        extra = f" (fields: {', '.join(fields)})" if item["type"] == "extra_forbidden" else ""
        lines.append(f"{where}: {item['msg']}, got {shown(item['input'])}{extra}")
    return ScheduleError(f"not {what}: " + "; ".join(lines))
