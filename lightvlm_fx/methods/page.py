"""`make docs`: docs/methods.md, from the classes."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from lightvlm_fx.methods.base import Method, TokenScore
from lightvlm_fx.methods.registry import BUDGETS, COMBINES, COUNTS, ENTRY_MERGES, ENTRY_SCORES, TOKEN_SCORES, WHEN, Registry

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
HEAD = """# Methods

Written by `make docs` from `lightvlm_fx/methods/`; one file each, whose docstring says more. A schedule names a
method, or gives it options: `score = "density"`, `score = { name = "density", power = 0.5 }`. Presets put them
together: `lightvlm presets`.
"""
PARTS: tuple[tuple[str, str, Registry[Any]], ...] = (
    ("Token scores", "`Cut(score=)`: what a cut ranks visual tokens by.", TOKEN_SCORES),
    ("Counts", "`Cut(keep=)`: how many tokens stay of a picture, where that is neither a share nor one number.", COUNTS),
    ("Combines", "`Cut(combine=)`: what becomes of the tokens that a cut drops.", COMBINES),
    ("KV scores", "`Kv(score=, prompt=)`: what cache entries are worth.", ENTRY_SCORES),
    ("Merges of entries", "`Kv(merge=)`: what becomes of entries that do not stay.", ENTRY_MERGES),
    ("Budgets", "`Kv(budgets=)`: how layers share the capacity. A list of numbers is `weights`.", BUDGETS),
    ("Moments", "`Kv(when=)`: when a bounded cache chooses.", WHEN),
)


def entry(kind: type[Method]) -> str:
    """One item of a list."""
    options = [f"`{name}`" if field.is_required() else f"`{name}={field.get_default()}`" for name, field in kind.model_fields.items()]
    first = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    said = [f"`{kind.name}`: {first} ({kind.source})"]
    said += [f"Options: {', '.join(options)}."] * bool(options) + [f"Reads: {', '.join(kind.reads)}."] * bool(kind.reads)
    said += ["Also before layer 0."] * (issubclass(kind, TokenScore) and kind().before_layers)
    return textwrap.fill(" ".join(said), 119, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def page() -> str:
    """The page, with a list for each kind of method."""
    lines = [HEAD]
    for title, what, registry in PARTS:
        lines += [f"## {title}", "", what, "", *map(entry, registry.all()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
