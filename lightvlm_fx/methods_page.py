"""`make docs`: docs/methods.md, from the presets and the classes of methods."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightvlm_fx.kv import Kv
from lightvlm_fx.methods.base import Method, TokenScore
from lightvlm_fx.methods.registry import BUDGETS, COMBINES, COUNTS, ENTRY_MERGES, ENTRY_SCORES, TOKEN_SCORES, WHEN, Registry
from lightvlm_fx.presets.lookup import PRESETS, grouped, make, sure
from lightvlm_fx.presets.places import videos_only
from lightvlm_fx.schedule import Schedule

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FAMILIES = DOCS / "methods.md", DOCS / "methods-on-families.json"
DETAIL = r": |; | \(|, but \d"  # where the reason of a refusal goes on with details, which docs/support.md has
HEAD = """# Methods

Written by `make docs` from `lightvlm_fx/presets/` and `lightvlm_fx/methods/`; one file each, whose docstring says
more. A schedule names a method, or gives it options: `score = "density"`,
`score = { name = "density", power = 0.5 }`. Presets put them together, and `lightvlm presets` lists their options.

## Published methods

Each preset at its defaults: where it acts (numbers below 1 are shares of the depth), by what score, what becomes of
the tokens that go (combine), which positions stay, what the caches then hold, whose it is, how sure its steps are, and
the [families](support.md#methods-on-families) that it was tried on, as tiny models.
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


def published(name: str, found: dict[str, str]) -> str:
    """The item of a preset, of which `found` says what it does on each family."""
    made = make(name)
    cuts = [*made.tower, *(cut for cut in made.cuts if not cut.score.after_tower_cuts)]
    said = [f"`{name}`: {_where(made)}."]
    said += [f"Score: {_names(cut.score for cut in cuts)}. Combine: {_names(cut.combine for cut in cuts)}."] * bool(cuts)
    said += [f"Positions: {_listed(cut.positions for cut in made.cuts)}."] * bool(made.cuts)
    said += [f"Cache: {_cache(made)}.", f"Source: {_source(name)}.", f"How sure: {sure(name)}", f"Families: {_families(found)}."]
    said += ["Still pictures stay whole, as they did there."] * videos_only(made)
    return _item(said)


def _where(made: Schedule) -> str:
    later = [cut.layer for cut in made.cuts if cut.layer != 0]
    blocks = [cut.layer for cut in made.tower]
    parts = [f"before the vision tower, whose pictures have {made.downsample} of their sides"] * bool(made.downsample)
    parts += [f"inside the vision tower, in blocks {_numbers(blocks)}"] * bool(blocks)
    parts += ["before the decoder"] * (len(later) < len(made.cuts))
    parts += [f"before layer{'s' * (len(later) > 1)} {_numbers(later)}"] * bool(later)
    parts += [f"in {len(made.freeze)} layers that leave visual tokens as they are"] * bool(made.freeze)
    parts += [f"in the cache, {made.kv.when.said}"] if made.kv else []
    return "; ".join(parts) or "nowhere"


def _cache(made: Schedule) -> str:
    """What the caches hold after the prompt."""
    late = any(cut.layer != 0 for cut in made.cuts)
    tokens = "in each layer as many keys and values as tokens arrive there" if late else "as many keys and values as tokens stay"
    parts = [tokens] if made.cuts else [] if made.kv else ["keys and values of all tokens"]
    return "; ".join(parts + ([_bound(made.kv)] if made.kv else []))


def _bound(kv: Kv) -> str:
    of = " visual" if kv.of == "visual" else ""
    size = f"{kv.capacity}{of} entries" if isinstance(kv.capacity, int) else f"{kv.capacity} of the{of} entries"
    parts = ["all stay, of which each turn reads " + size if kv.when.by_turn else f"bounded: {size} a layer"]
    parts += [f"worth by {kv.score}"]
    parts += [f"shared over the layers by {kv.budgets}"] * (kv.budgets.name != "uniform")
    parts += [f"the others merge by {kv.merge}"] * kv.merge.joins
    parts += [f"one choice for {kv.layers} layers between two cuts"] * (kv.layers > 1)
    return ", ".join(parts)


def _families(found: dict[str, str]) -> str:
    works = [family for family, result in found.items() if result == "works"]
    refused: dict[str, list[str]] = {}
    for family, result in found.items():
        if result != "works":
            refused.setdefault(re.split(DETAIL, result)[0], []).append(family)
    if not refused:
        return f"all {len(works)} tried" if works else "none tried yet"
    return f"{', '.join(works) or 'none'}; not {'; nor '.join(', '.join(names) + f' ({why})' for why, names in refused.items())}"


def _source(name: str) -> str:
    number = re.search(r"\((arXiv [\d.]+[^)]*|CVPR[^)]*)\)", PRESETS[name].__doc__ or "")
    return number[1] if number else "ours"


def _numbers(layers: Iterable[float]) -> str:
    return ", ".join(f"{layer:.3g}" for layer in layers)


def _names(methods: Iterable[Method]) -> str:
    return _listed(f"`{method}`" for method in methods)


def _listed(words: Iterable[str]) -> str:
    """Each once."""
    return ", ".join(dict.fromkeys(words))


def _item(said: list[str]) -> str:
    return textwrap.fill(" ".join(said), 119, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def entry(kind: type[Method]) -> str:
    """One item of a list."""
    options = [f"`{name}`" if field.is_required() else f"`{name}={field.get_default()}`" for name, field in kind.model_fields.items()]
    first = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    said = [f"`{kind.name}`: {first} ({kind.source})"]
    said += [f"Options: {', '.join(options)}."] * bool(options) + [f"Reads: {', '.join(kind.reads)}."] * bool(kind.reads)
    said += ["Also before layer 0."] * (issubclass(kind, TokenScore) and kind().before_layers)
    return _item(said)


def page() -> str:
    """The page, with a list for each place of presets and each kind of method."""
    found = json.loads(FAMILIES.read_text(encoding="utf-8"))
    lines = [HEAD]
    for where, names in grouped().items():
        lines += [f"### {where}", "", *(published(name, found.get(name, {})) for name in names), ""]
    for title, what, registry in PARTS:
        lines += [f"## {title}", "", what, "", *map(entry, registry.all()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
