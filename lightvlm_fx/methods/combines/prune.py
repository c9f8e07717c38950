"""Combine: what is dropped is gone (FastV, arXiv 2403.06764)."""

from __future__ import annotations

from lightvlm_fx.methods.base import Combine


class Prune(Combine):
    """Survivors stay as they are."""

    name = "prune"
    source = "arXiv 2403.06764"
    counts = False
