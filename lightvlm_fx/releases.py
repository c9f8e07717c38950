"""Which releases of torch and transformers the tests ran on, and what is said outside of them. Needs neither."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from lightvlm_fx.errors import CaptureError, LightVLMError, PostconditionError, PreconditionError

# First and last minor release that the tests ran on; pyproject.toml allows one more (tests/core/test_releases.py).
TESTED = {"torch": ((2, 11), (2, 14)), "transformers": ((5, 17), (5, 24))}

NO_TORCH = "needs PyTorch: pip install torch (the build for your machine), or 'lightvlm-fx[compile]'"


class UntestedRelease(UserWarning):
    """The installed torch or transformers is outside the tested range."""


def release(name: str) -> tuple[int, ...]:
    """Major and minor number of an installed package."""
    return tuple(map(int, re.findall(r"\d+", version(name))[:2]))


def untested() -> list[str]:
    """A statement for each installed package that is outside the tested range."""
    said = []
    for name, (first, last) in TESTED.items():
        if not first <= release(name) <= last:
            said.append(f"{name} {version(name)} is outside the tested range {'.'.join(map(str, first))} to {'.'.join(map(str, last))}")
    return said


def warn_of_untested() -> list[str]:
    """Warn of every package outside the tested range, in the name of the caller's caller; returns what was said."""
    said = [f"{statement}; check keep=1.0 parity first" for statement in untested()]
    for statement in said:
        warnings.warn(statement, UntestedRelease, stacklevel=3)
    return said


@contextmanager
def releases_first() -> Iterator[None]:
    """Outside the tested range, an error of this block that speaks of the model begins with the releases, which may be why.

    An error that is not ours (a name that moved, say) becomes a CaptureError. A user's mistake and a full disk stay what they are.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        said = "; ".join(untested())
        users = isinstance(error, LightVLMError) and not isinstance(error, CaptureError | PreconditionError | PostconditionError)
        if not said or users or str(error).startswith(said):
            raise
        if not isinstance(error, LightVLMError):
            raise CaptureError(f"{said}: {type(error).__name__}: {error}") from error
        error.args = (f"{said}: {error}",)
        raise
