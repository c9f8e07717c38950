"""Writes docs/methods-on-families.json and the second table of docs/support.md: every preset on a few families.

    python -m lightvlm_fx.support_methods            all presets, about eight minutes on one core
    python -m lightvlm_fx.support_methods fastv      some of them; the others stay as they were found

A tiny random model of each family, compiled with backend="eager", answers one row with a picture under the preset.
"""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from typing import Any

import torch

import lightvlm_fx as lightvlm
from lightvlm_fx.compat import given_cache
from lightvlm_fx.errors import LightVLMError
from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.presets import make
from lightvlm_fx.presets.lookup import ordered
from lightvlm_fx.presets.places import videos_only
from lightvlm_fx.quiet import quiet
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.support import CASES, METHODS, NEW_TOKENS, PAGE, WHOLE, WIDTH, WORKS, WRONG, answer
from lightvlm_fx.zoo import build

DATA = PAGE.with_name("methods-on-families.json")
COMMAND = "python -m lightvlm_fx.support_methods"
FAMILIES = ("llava", "llava_next", "llava_onevision", "internvl", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma")
# Options for decoders of 4 layers and prompts of some 30 tokens, where the defaults need more layers or would reduce nothing.
TINY: dict[str, dict[str, Any]] = {
    "illava": {"layers": (1, 2, 3)},
    "dynamic-vlm": {"most": 4},
    "streaming-llm": {"capacity": 12},
    "h2o": {"capacity": 12},
    "scissorhands": {"capacity": 12},
    "snapkv": {"capacity": 12, "window": 4},
    "pyramidkv": {"capacity": 12, "window": 4},
    "look-m": {"recent": 4},
    "meda": {"recent": 4},
}
Found = dict[str, dict[str, str]]  # of each preset and family: WORKS, or why not


def start(family: str) -> tuple[Any, Any]:
    """A tiny model, compiled as it is, and its inputs: its siblings under other schedules need no capture of their own."""
    tiny = build(family)
    return lightvlm.compile(tiny.model, "none", backend="eager"), tiny.inputs(**CASES["one row"])


def try_out(preset: str, whole: Any, inputs: Any) -> str:
    """WORKS, the first line of what refuses the preset, or what is WRONG."""
    try:
        fast = whole.lightvlm.with_schedule(make(preset, **TINY.get(preset, {})))
        layers = given_cache(answer(fast, inputs)).layers
    except LightVLMError as refusal:
        return str(refusal).splitlines()[0].split("cannot be compiled: ")[-1].split("}: ")[-1]
    except Exception as error:
        return f"{WRONG}: {type(error).__name__}: {error}".splitlines()[0]
    held = [int((layer.table.position >= 0).sum(-1).max()) for layer in layers]
    expected = scheduled(fast.lightvlm.schedule, fast.lightvlm.layout, len(layers))
    return WORKS if expected in (held, None) else f"{WRONG}: {held} entries a layer, scheduled {expected}"


def scheduled(schedule: Schedule, layout: Any, depth: int) -> list[int] | None:
    """The entries of each layer after the answer; None where only the prompt tells how many a layer has."""
    [pictures], text, new = layout.pictures, int((layout.segment == TEXT).sum()), NEW_TOKENS - 1
    kv = schedule.kv
    if kv is not None and kv.adaptive:
        return None
    if kv is not None and kv.of == "visual":
        return [text + n + new for n in kv.capacities(sum(picture.tokens for picture in pictures), depth)]
    if kv is not None:
        return [n + (0 if kv.when.stepping else new) for n in kv.capacities(int((layout.segment != PADDING).sum()), depth)]
    left = [[picture.tokens, *schedule.budgets(picture)] for picture in pictures]
    return [text + sum(sizes[number] for sizes in left) + new for number in schedule.token_sets(depth)]


def read() -> Found:
    """What the last run found."""
    found: Found = json.loads(DATA.read_text(encoding="utf-8"))
    return found


def section(found: Found) -> str:
    """The second part of docs/support.md."""
    reasons = list(dict.fromkeys(result for row in found.values() for result in row.values() if result != WORKS))
    cells = {WORKS: WORKS} | {reason: f"({number})" for number, reason in enumerate(reasons, 1)}
    adaptive = ", ".join(name for name in found if (kv := make(name).kv) and kv.adaptive)
    changed = "; ".join(f"`{name}` {', '.join(f'{option}={value}' for option, value in TINY[name].items())}" for name in sorted(TINY))
    said = [
        f"Written by `{COMMAND}`: each preset at its defaults, on tiny models as above, one row with a picture.",
        "*works*: it answers, and every layer's cache holds as many entries as scheduled. A number: it is refused, as below.",
        f"How many entries a layer holds depends on the prompt, and is not checked, under {adaptive}.",
        f"Other options, where the defaults need more layers than four, or reduce nothing of so short a prompt: {changed}.",
        f"{', '.join(name for name in found if videos_only(make(name)))} shorten videos and leave still pictures whole, as here.",
    ]
    lines = [METHODS, "", *(line for text in said for line in [*textwrap.wrap(text, WIDTH, **WHOLE), ""])]
    lines += [f"|preset|{'|'.join(FAMILIES)}|", "|---" * (len(FAMILIES) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells[row[family]] for family in FAMILIES)} |" for name, row in found.items()]
    lines.append("")
    for reason in reasons:
        lines += textwrap.wrap(f"- {cells[reason]} {reason}", WIDTH, subsequent_indent="  ", **WHOLE)
    return "\n".join(lines) + "\n"


def main(presets: list[str]) -> int:
    """Try `presets`, or all; write the data and the table. The exit status is 1 where one is neither right nor refused."""
    started = {family: start(family) for family in FAMILIES}
    found = read() if presets else {}
    for preset in presets or ordered():
        with quiet(logging.CRITICAL):
            found[preset] = {family: try_out(preset, *started[family]) for family in FAMILIES}
        print(preset, {family: result for family, result in found[preset].items() if result != WORKS} or WORKS, flush=True)
    found = {preset: found[preset] for preset in ordered() if preset in found}
    DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(PAGE.read_text(encoding="utf-8").partition(METHODS)[0].rstrip() + f"\n\n{section(found)}", encoding="utf-8")
    print(f"wrote {DATA.name} and {PAGE.name}")
    return int(any(result.startswith(WRONG) for row in found.values() for result in row.values()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
