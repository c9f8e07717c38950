"""What differs between releases of torch and transformers, and every private API of theirs that is used, each with its test.

Tested releases stand here once: `TESTED`. tests/core/test_compat.py holds pyproject.toml to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from torch import nn

# first and last minor release that the tests ran on
TESTED = {"torch": ((2, 11), (2, 14)), "transformers": ((5, 17), (5, 24))}


def cache_argument(forward: Callable[..., Any]) -> str:
    """What a decoder's forward calls its cache: `cache` from transformers 5.24 on, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def given_cache(kwargs: dict[str, Any]) -> Any:
    """The cache among the arguments of a call, under either name."""
    return kwargs["cache"] if kwargs.get("cache") is not None else kwargs.get("past_key_values")


def with_cache(output_class: type, cache: Any, **values: Any) -> Any:
    """An output of transformers that holds `cache` under the name that this release gives it."""
    name = "cache" if any(field.name == "cache" for field in fields(output_class)) else "past_key_values"
    return output_class(**values, **{name: cache})


@contextmanager
def attention_implementation(module: nn.Module, name: str) -> Iterator[None]:
    """Run a decoder or tower with another attention implementation; the old one comes back whatever happens.

    `config._attn_implementation` is private: transformers has no public way to read what `set_attn_implementation` sets.
    """
    old = module.config._attn_implementation
    module.set_attn_implementation(name)
    try:
        yield
    finally:
        module.set_attn_implementation(old)
