"""Muting what libraries say meanwhile, and leaving everything as it was."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


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
