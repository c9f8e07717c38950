"""An artifact's files, held open from when it was loaded: what was checked is what is read, whatever happens to the folder meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import mmap
import os
import shutil
import stat
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lightvlm_fx.errors import ArtifactError

MOST = 2**31  # bytes of a file that is read at once; protobuf takes no larger graph, and weights are mapped
AGAIN = "export again, or copy the whole folder again"


def inside(home: Path, name: str) -> Path:
    """The path of the file `name` of the folder. Raises ArtifactError where it lies, or links, outside, or is no path."""
    path = home / name
    try:
        out = Path(name).is_absolute() or ".." in Path(name).parts or not path.resolve().is_relative_to(home.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a name that is too long, a link to itself
        raise ArtifactError(f"{home} names {name!r}, which is no path of a file: {error}; {AGAIN}") from error
    if out:
        raise ArtifactError(f"{home} names {name!r}, which leads out of the folder; the artifact is not to be trusted")
    return path


def open_file(home: Path, name: str) -> BinaryIO:
    """The regular file `name` of the folder, open for reading. Raises ArtifactError where it is missing, or something else."""
    path = inside(home, name)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer
    except FileNotFoundError:
        raise ArtifactError(f"{home}: {name} is missing; {AGAIN}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{home}: {name} cannot be read: {error}; {AGAIN}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ArtifactError(f"{home}: {name} is missing: what stands there is no regular file; {AGAIN}")
    return os.fdopen(handle, "rb")


def unlisted(home: Path, listed: Iterable[str]) -> list[str]:
    """Paths of all in the folder that is neither one of the files `listed` nor a folder that holds one, sorted; links are not followed."""
    names = set(listed)
    parents = {str(parent) for name in names for parent in Path(name).parents}
    out = []
    for where, folders, files in os.walk(home):
        here = Path(where).relative_to(home)
        for name in folders:
            path = here / name
            if (home / path).is_symlink() or str(path) not in parents:
                out.append(path.as_posix())
        folders[:] = [name for name in folders if str(here / name) in parents]
        out += [(here / name).as_posix() for name in files if (here / name).as_posix() not in names]
    return sorted(out)


class Files:
    """The files that a manifest lists, each opened once. What is read is held against its size, and where `checked` against its hash.

    `wrong`: a line for each that is missing, of another size, or where `checked` of another SHA-256.
    """

    def __init__(self, home: Path, manifest: dict[str, Any], *, checked: bool = True) -> None:
        self.home, self.listed, self.checked = home, manifest["files"], checked
        self._open: dict[str, BinaryIO] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()  # over the places in open files
        self.wrong: list[str] = []
        weakref.finalize(self, _close, self._open)
        for name in self.listed:
            try:
                self._open[name] = open_file(home, name)
            except ArtifactError as error:
                self.wrong.append(str(error).removeprefix(f"{home}: ").removesuffix(f"; {AGAIN}"))
                continue
            self._seen[name] = self._state(name)
            if line := self._differs(name):
                self.wrong.append(line)

    @staticmethod
    def of(folder: str | Path | Files, manifest: dict[str, Any]) -> Files:
        """The open files of an artifact: as they are given, or those of a folder, as they are where the manifest lists none yet."""
        if isinstance(folder, Files):
            return folder
        home = Path(folder)
        if "files" in manifest:
            return Files(home, manifest)
        found = {f.relative_to(home).as_posix(): {"bytes": f.stat().st_size} for f in home.rglob("*") if f.is_file()}
        return Files(home, {"files": found}, checked=False)

    def data(self, name: str) -> bytes:
        """The bytes of a file. Raises ArtifactError where it is not listed, was not there, or is not what the manifest says."""
        size = self.unchanged(name)
        if size > MOST:
            raise self._error(f"{name} has {size} bytes, above the {MOST} that a file other than the weights may have")
        if size != self.listed[name]["bytes"]:
            raise self._error(f"{name} has {size} bytes, the manifest says {self.listed[name]['bytes']}")
        with self._lock:
            self._open[name].seek(0)
            found = self._open[name].read(size)
        if self.checked and hashlib.sha256(found).hexdigest() != self.listed[name]["sha256"]:
            raise self._error(f"{name} has another SHA-256 than the manifest says")
        return found

    def array(self, name: str) -> NDArray[Any]:
        """The array in a .npy file. Raises ArtifactError where it holds none, or not as many bytes as its header claims."""
        data = self.data(name)
        try:
            return _array(data)
        except Exception as error:  # NumPy reads the header as Python, and raises what that does
            raise self._error(f"{name} is no array: {error}") from error

    def unchanged(self, name: str) -> int:
        """The size of a file in bytes. Raises ArtifactError where it was not there, or was written to since it was opened."""
        if name not in self._open:
            raise self._error(f"{name} is missing" if name in self.listed else f"{name} is not listed in the manifest")
        if self._state(name) != self._seen[name]:
            raise self._error(f"{name} was written to since the artifact was loaded; load it again")
        return self._seen[name][0]

    def stands(self, name: str) -> bool:
        """Whether the file that is open still is the one of that name in the folder: not after this was moved, deleted or replaced."""
        try:
            return os.path.samestat((self.home / name).stat(), os.fstat(self._open[name].fileno()))
        except OSError:
            return False

    @contextlib.contextmanager
    def mapped(self, name: str) -> Iterator[memoryview]:
        """The bytes of a file, mapped for a while."""
        self.unchanged(name)
        with mmap.mmap(self._open[name].fileno(), 0, access=mmap.ACCESS_READ) as whole, memoryview(whole) as view:
            yield view

    def copy(self, name: str, to: Path) -> None:
        """Write a file, as it is open, to the path `to`."""
        self.unchanged(name)
        with self._lock, to.open("wb") as stream:
            self._open[name].seek(0)
            shutil.copyfileobj(self._open[name], stream)

    def copied(self, to: Path) -> Path:
        """Write what a processor may read, all but graphs, weights and samples, to the folder `to`; returns it."""
        for name in self.listed:
            if not name.endswith((".onnx", ".onnx.data", ".npy", ".pt2")):
                path = to / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.data(name))
        return to

    def _state(self, name: str) -> tuple[int, int]:
        found = os.fstat(self._open[name].fileno())
        return found.st_size, found.st_mtime_ns

    def _differs(self, name: str) -> str:
        """How a file differs from what the manifest says; empty where it does not."""
        size, noted = self._seen[name][0], self.listed[name]
        if size != noted["bytes"]:
            return f"{name} has {size} bytes, the manifest says {noted['bytes']}"
        if self.checked and hashlib.file_digest(self._open[name], "sha256").hexdigest() != noted["sha256"]:
            return f"{name} has another SHA-256 than the manifest says"
        return ""

    def _error(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.home}: {what}; {AGAIN}")


def _close(handles: dict[str, BinaryIO]) -> None:
    for handle in handles.values():
        handle.close()


def _array(data: bytes) -> NDArray[Any]:
    """The array of a .npy file's bytes, of exactly the size that its header claims."""
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format")
    shape, by_column, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
    have = len(data) - stream.tell()
    if dtype.hasobject or have != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{have} bytes after a header that claims {list(shape)} of {dtype}")
    flat = np.frombuffer(data, dtype, offset=stream.tell()).copy()
    return flat.reshape(shape[::-1]).T if by_column else flat.reshape(shape)
