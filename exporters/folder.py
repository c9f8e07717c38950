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

from lightvlm_fx.artifact.files import unlisted
from lightvlm_fx.artifact.manifest import MANIFEST, parsed
from lightvlm_fx.errors import ArtifactError, InputError

_AT_FDCWD, _EXCHANGE = -100, 2  # of Linux's renameat2
_writing: set[str] = set()  # folders that this process writes now


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place once the block ends well, and goes where it does not.

    What it replaces is an artifact, of which it takes away only what the manifest there lists. Raises InputError where anything else
    stands in `target`, before the block and after it, and leaves all of that as it is.
    """
    target = target.resolve()  # of a link, what it points to is replaced
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.partial-"
    for left in target.parent.iterdir():  # of an export that was killed
        if left.name.startswith(prefix) and left.name not in _writing and not _alive(left.name.removeprefix(prefix).partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=target.parent))
    _writing.add(aside.name)
    try:
        aside.chmod(0o755)
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _sync(file)
        _check_replaceable(target)
        if target.exists():
            _exchange(aside, target)
        else:
            aside.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        _writing.discard(aside.name)


def _check_replaceable(target: Path) -> None:
    """Raises InputError where `target` is, or holds, anything but an artifact's own files."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise InputError(f"{target} holds something that is no artifact of lightvlm_fx; give a new or an empty folder")
    listed: list[str] = []
    if os.path.lexists(target / MANIFEST):
        try:
            files = parsed(target).get("files")
        except ArtifactError:
            files = None  # a manifest that cannot be read lists nothing
        listed = [MANIFEST, *(files if isinstance(files, dict) else ())]
    other = unlisted(target, listed)
    if other and not listed:
        raise InputError(f"{target} holds something that is no artifact of lightvlm_fx; give a new or an empty folder")
    if other:
        shown = ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
        raise InputError(f"{target} holds {shown} beside the files that its {MANIFEST} lists, which an export would delete: "
                         "move that elsewhere, or give a new or an empty folder")  # fmt: skip


def _alive(pid: str) -> bool:
    """Whether another process of that number is there; what one of this number left, and this one is not writing, a dead one left."""
    if not pid.isdigit() or int(pid) == os.getpid():
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
