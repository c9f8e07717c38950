"""What the parts of a schedule share: frozen pydantic models whose errors read like ours, and TOML values."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from lightvlm_fx.errors import ScheduleError, UnknownName


class Frozen(BaseModel):
    """Immutable; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise _readable(error, type(self)) from None


def one_of(what: str, known: tuple[str, ...]) -> BeforeValidator:
    """A validator that suggests the nearest of the `known` names."""

    def check(value: Any) -> Any:
        if value not in known:
            raise UnknownName.of(what, value, known)
        return value

    return BeforeValidator(check)


def toml(value: Any) -> str:
    """A string, number, switch or list as TOML writes it: JSON, but for astral characters and DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _readable(error: ValidationError, kind: type[BaseModel]) -> ScheduleError | UnknownName:
    """Pydantic's findings in one ScheduleError; what our own validators raised is passed on as it is."""
    lines = []
    for item in error.errors():
        own = item.get("ctx", {}).get("error")
        if isinstance(own, ScheduleError | UnknownName):
            if item["loc"][:1] == ("cuts",):
                own.add_note(f"in cut {item['loc'][1]}")
            return own
        where = ".".join(map(str, item["loc"]))
        extra = f" (fields: {', '.join(kind.model_fields)})" if item["type"] == "extra_forbidden" else ""
        lines.append(f"{where}: {item['msg']}, got {item['input']!r}{extra}")
    return ScheduleError(f"not a valid {kind.__name__.lower()}: " + "; ".join(lines))
