"""Muting what libraries say meanwhile, and leaving everything as it was."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any, Literal


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """No warnings, and nothing of the log up to `level`; afterwards filters, and what the caller had disabled, are as before."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(max(level, before))
        try:
            yield
        finally:
            logging.disable(before)


class _Stream:
    """A stream that drops what `muted` threads write, and hands on what others do."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.muted = Counter[int]()  # of each thread, how often it is inside

    def write(self, text: str) -> int:
        written: int = len(text) if self.stream is None or self.muted[get_ident()] else self.stream.write(text)
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self.stream is not None:
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


_changing = Lock()


@contextmanager
def muted(name: Literal["stdout", "stderr"]) -> Iterator[None]:
    """What this thread writes to `sys.stdout` or `sys.stderr` meanwhile is dropped; other threads write as before.

    The last of all threads that leaves puts back the stream that stood there.
    """
    own = get_ident()
    with _changing:
        here = getattr(sys, name)
        stream = here if isinstance(here, _Stream) else _Stream(here)
        setattr(sys, name, stream)
        stream.muted[own] += 1
    try:
        yield
    finally:
        with _changing:
            stream.muted[own] -= 1
            if not any(stream.muted.values()) and getattr(sys, name) is stream:
                setattr(sys, name, stream.stream)
