"""The error classes and the grammar of their messages.

Every message says what was expected, what was found, where, and what to do. Users' mistakes are never
`assert`s; our own mistakes are `PostconditionError` and say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def shown(value: object, most: int = 300) -> str:
    """What a message says of a value: its `repr`, at most `most` characters of it, or its type where it has none."""
    try:
        text = repr(value)
    except Exception as error:  # an integer of 5000 digits, a list nested 1000 deep, a class of the caller's
        return f"a {type(value).__name__} that cannot be printed ({type(error).__name__})"
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


class LightVLMError(Exception):
    """Base of everything this package raises on purpose."""


class ScheduleError(LightVLMError, ValueError):
    """A schedule, or the file it stands in, says something impossible."""


class UnknownName(LightVLMError, ValueError):
    """No pass, preset, score, combine or family of that name."""

    @classmethod
    def of(cls, what: str, name: object, known: Iterable[str]) -> UnknownName:
        known = sorted(known)
        close = get_close_matches(name, known, n=1) if isinstance(name, str) else []
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return cls(f"no {what} named {shown(name)}{hint}\n  known: {', '.join(known)}")


class CaptureError(LightVLMError):
    """The model could not be turned into a graph; the message names the input, module or op."""


class RefusedModel(CaptureError):
    """This architecture is outside what capture supports; the message says why."""


class PreconditionError(LightVLMError):
    """A pass met a program, or options, it cannot work with."""


class PostconditionError(LightVLMError):
    """A pass broke its promise: a defect of lightvlm_fx, please report it with the dump."""


class OrderError(LightVLMError):
    """Passes stand in an order that one of them forbids; all violations are listed."""


class InputError(LightVLMError, ValueError):
    """A batch that the compiled model cannot take; the message says what to do."""


class ArtifactError(LightVLMError):
    """An exported folder that is not whole, not ours, or not what its manifest says."""


class NotSupported(LightVLMError):
    """An operation on a compiled model that has no meaning there (training, cropping a cache, ...)."""
