"""Options as schedule files of version 0.1 wrote them, flat beside the names of methods, and the fingerprints that go with those.

Such a file loads and means the same. A fingerprint is taken of the old form, to which only what it could not say is added: those of
old schedules stay, and a new option or method changes none.
"""

from __future__ import annotations

from typing import Any

from lightvlm_fx.errors import LightVLMError, ScheduleError
from lightvlm_fx.methods.base import Method
from lightvlm_fx.methods.registry import Registry

Parts = dict[str, Registry[Any]]  # fields that hold a method, and where to find it by name


def nested(data: Any, fields: dict[str, Any], parts: Parts, usual: dict[str, Any]) -> Any:
    """`data` with options beside the fields moved into the methods that have them.

    `fields` names the model's own, each with its default; `usual` holds the old flat options. An option that none of the chosen methods
    has is dropped where it is at its old default, or where all are there, as old files wrote them; else it raises ScheduleError.
    """
    if not isinstance(data, dict):
        return data
    loose = {key: value for key, value in data.items() if key not in fields}
    if not loose:
        return data
    try:
        chosen = {part: registry.make(data.get(part, fields[part])) for part, registry in parts.items() if data.get(part, fields[part])}
    except LightVLMError:
        return data  # pydantic says of which field
    more: dict[str, dict[str, Any]] = {part: {} for part in chosen}
    rest = {key: value for key, value in data.items() if key in fields}
    for key, value in loose.items():
        owners = [part for part, method in chosen.items() if key in type(method).model_fields]
        for part in owners:
            more[part][key] = value
        kinds = (bool, int, float) if usual.keys() <= loose.keys() else (type(usual.get(key)),)
        old = key in usual and type(value) in kinds and (len(kinds) > 1 or value == usual[key])
        if owners or old:
            continue
        found = [f"{registry.base.what} {name!r}" for registry in dict.fromkeys(parts.values()) for name in registry.owner_of(key)]
        if found:
            have = ", ".join(f"{part}={method.name!r}" for part, method in chosen.items())
            raise ScheduleError(f"{key} is an option of {' and of '.join(found)}; {have} {'has' if len(chosen) == 1 else 'have'} none")
        rest[key] = value  # pydantic says what fields there are
    for part, given in more.items():
        if given:
            method = chosen[part]
            rest[part] = {"name": method.name, **{name: getattr(method, name) for name in method.changed}, **given}
    return rest


def canonical(base: dict[str, Any], methods: dict[str, Method | None], usual: dict[str, Any]) -> dict[str, Any]:
    """What a fingerprint is taken of: `base`, the methods' names, and their options as the old form has them.

    Of options that it has not, only those that differ from their defaults, by the field that holds the method.
    """
    out = base | {part: "" if method is None else method.name for part, method in methods.items()} | usual
    set_: dict[str, Any] = {}
    for part, method in methods.items():
        for option in type(method).model_fields if method is not None else ():
            value = getattr(method, option)
            if option in usual and set_.get(option, value) == value:
                out[option] = set_[option] = value
            elif option in usual or option in method.changed:
                out[f"{part}.{option}"] = value
    return out
