"""Folders that appear whole or not at all: written aside, then exchanged with what stood there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lightvlm_fx.artifact.manifest import MANIFEST
from lightvlm_fx.errors import InputError

_AT_FDCWD, _EXCHANGE = -100, 2  # of Linux's renameat2


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place once the block ends well, and goes where it does not.

    Raises InputError where `target` holds something that is no artifact.
    """
    target = target.resolve()  # behind a link, what it points to is replaced
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} holds something that is no artifact of lightvlm_fx; give a new or an empty folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.partial-"
    for left in target.parent.iterdir():  # of an export that was killed
        if left.name.startswith(prefix) and not _alive(left.name.removeprefix(prefix).partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=target.parent))
    try:
        aside.chmod(0o755)
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _sync(file)
        if target.exists():
            _exchange(aside, target)
        else:
            aside.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step where the system can; else `old` is missing for a moment."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        rename = getattr(libc, "renameat2", None)
        if rename is not None and rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _EXCHANGE) == 0:
            return
    spare = new.with_name(f"{new.name}-old")
    old.rename(spare)
    new.rename(old)
    spare.rename(new)
