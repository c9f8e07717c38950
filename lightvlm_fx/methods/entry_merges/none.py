"""Entries that do not stay are gone."""

from __future__ import annotations

from lightvlm_fx.methods.base import EntryMerge


class NoMerge(EntryMerge):
    """Survivors stay as they are."""

    name = "none"
    source = "arXiv 2306.14048"
    joins = False
