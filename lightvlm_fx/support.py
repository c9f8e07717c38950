"""Writes docs/support.md but for its second table: what every image-text-to-text type of the installed transformers does here.

    python -m lightvlm_fx.support            all types, about ten minutes on one core
    python -m lightvlm_fx.support llava      some of them, printed instead of written

Each tiny random model of the zoo is compiled with backend="eager" and compared with itself uncompiled.
"""

from __future__ import annotations

import logging
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import lightvlm_fx as lightvlm
from lightvlm_fx.compat import given_cache
from lightvlm_fx.errors import RefusedModel
from lightvlm_fx.quiet import quiet
from lightvlm_fx.zoo import FAMILIES, NO_RECIPE, TinyVLM, build, image_text_to_text_types

PAGE = Path(__file__).parent.parent / "docs" / "support.md"
COMMAND = "python -m lightvlm_fx.support"
WIDTH = 119  # of a line
WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}
CASES: dict[str, dict[str, Any]] = {
    "one row": {"text": (9,), "images": (1,)},
    "batch": {"text": (9, 6), "images": (1, 1)},
    "two pictures": {"text": (9,), "images": (2,)},
}
BOUND = 1e-5  # largest difference of a logit, over the largest logit
ALL = 0.9999  # of a picture of fewer than 5000 tokens this is all of it, by cuts that run; keep=1.0 leaves no nodes
KEEP = 0.3
NEW_TOKENS = 4
METHODS = "## Methods on families"  # heading of the second part of the page, which support_methods.py writes
WORKS, REFUSED, NOT_TRIED, WRONG = "works", "refused", "not tried", "WRONG"


@dataclass(frozen=True)
class Finding:
    """What was found of one type."""

    model_type: str
    status: str
    checked: str = ""
    note: str = ""


def answer(model: Any, inputs: dict[str, Tensor], new_tokens: int = NEW_TOKENS) -> Any:
    """Greedy tokens, the logits of every step, and the cache."""
    flags = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **flags)


def difference(expected: Any, got: Any) -> float:
    """Largest difference of two answers' logits over the largest logit; infinite where the tokens differ."""
    if not torch.equal(expected.sequences, got.sequences):
        return float("inf")
    want, have = torch.stack(expected.logits), torch.stack(got.logits)
    real = want > torch.finfo(want.dtype).min / 2  # some heads forbid tokens by the lowest number there is
    return float((want - have)[real].abs().max() / want[real].abs().max())


def examine(model_type: str) -> Finding:
    """Build, compile and compare one type."""
    if model_type not in FAMILIES:
        return Finding(model_type, NOT_TRIED, note=NO_RECIPE.get(model_type, "no recipe for a tiny model yet"))
    try:
        tiny = build(model_type)
        fast = lightvlm.compile(tiny.model, lightvlm.Schedule.preset("lightvlm", keep=ALL), backend="eager")
        checked, wrong = _same_when_all_stay(tiny, fast)
        wrong += _counts(tiny, fast.lightvlm.with_schedule(lightvlm.Schedule.preset("lightvlm", keep=KEEP)))
    except RefusedModel as refusal:
        return Finding(model_type, REFUSED, note=str(refusal).split("cannot be compiled: ")[-1].splitlines()[0])
    except Exception as error:
        return Finding(model_type, WRONG, note=f"{type(error).__name__}: {error}".splitlines()[0])
    caveat = [tiny.recipe.caveat] if tiny.recipe.caveat else []
    return Finding(model_type, WRONG if wrong else WORKS, ", ".join(checked), "; ".join(wrong + caveat))


def _same_when_all_stay(tiny: TinyVLM, fast: Any) -> tuple[list[str], list[str]]:
    """The cases that agree where all tokens stay, and what is wrong with the others."""
    checked, wrong = [], []
    for case, sizes in CASES.items():
        inputs = tiny.inputs(**sizes)
        try:
            expected = answer(tiny.model, inputs)
        except Exception:  # the family itself does not take such a batch: the recipe's caveat says so
            continue
        off = difference(expected, answer(fast, inputs))
        if off <= BOUND:
            checked.append(case)
        else:
            wrong.append(f"{case}: " + ("tokens differ" if off == float("inf") else f"logits differ by {off:.0e}"))
    return checked, wrong


def _counts(tiny: TinyVLM, fast: Any) -> list[str]:
    """What is wrong with the tokens that each layer caches at keep=0.3."""
    inputs = tiny.inputs(**CASES["one row"])
    layers = given_cache(answer(fast, inputs)).layers
    schedule, visual = fast.lightvlm.schedule, tiny.visual_tokens
    left = [visual, *schedule.budgets(visual)]
    text = inputs["input_ids"].shape[1] - visual
    expected = [text + left[number] for number in schedule.token_sets(len(layers))]
    found = [layer.table.used - (NEW_TOKENS - 1) for layer in layers]
    return [] if found == expected else [f"keep={KEEP}: {found} tokens a layer, scheduled {expected}"]


def page(findings: list[Finding]) -> str:
    """The page as Markdown."""
    order = [WRONG, WORKS, REFUSED, NOT_TRIED]
    rows = sorted(findings, key=lambda f: (order.index(f.status), f.model_type))
    count = Counter(f.status for f in findings)
    total = ", ".join(f"{count[status]} {status}" for status in order if count[status])
    lines = [
        "# Supported models",
        "",
        f"Written by `{COMMAND}` on transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}.",
        "Evidence: tiny random weights (4 decoder layers, float32, CPU), eager backend; no published checkpoint was run.",
        "",
        f"All {len(findings)} types that `AutoModelForImageTextToText` knows: {total}.",
        "",
        f'- *works*: under `Schedule.preset("lightvlm", keep={ALL})`, whose cuts run and keep everything, the',
        f"  {NEW_TOKENS} greedy tokens are identical to those of the",
        f"  uncompiled model, and all their logits within {BOUND:.0e} of the largest one, for each case named: one row with a",
        "  picture; a left-padded batch of two such rows; one row with two pictures. And under",
        f'  `Schedule.preset("lightvlm", keep={KEEP})` every layer holds exactly the scheduled number of tokens.',
        "- *refused*: `compile`, or the first prompt, raises `RefusedModel` with the reason given.",
        "- *not tried*: no tiny model is built here, for the reason given.",
        "",
        "| type | status | checked | note |",
        "| --- | --- | --- | --- |",
    ]
    below = [""]
    for f in rows:
        row = f"| `{f.model_type}` | {f.status} | {f.checked} | {f.note.replace('|', '/')} |"
        if len(row) > WIDTH:
            row = f"| `{f.model_type}` | {f.status} | {f.checked} | below |"
            below += textwrap.wrap(f"- `{f.model_type}`: {f.note}", WIDTH, subsequent_indent="  ", **WHOLE)
        lines.append(row)
    return "\n".join(lines + below * (len(below) > 1)) + "\n"


def main(types: list[str]) -> int:
    """Examine `types`, or all and write the page. The exit status is 1 where one is neither right nor refused."""
    findings = []
    for model_type in types or sorted(image_text_to_text_types()):
        with quiet(logging.CRITICAL):  # torch.export logs the traces of families that are then refused
            found = examine(model_type)
        findings.append(found)
        print(f"{found.model_type:<28}{found.status:<11}{found.checked}  {found.note}", flush=True)
    if not types:
        methods = "".join(PAGE.read_text(encoding="utf-8").partition(METHODS)[1:])
        PAGE.write_text(f"{page(findings)}\n{methods}", encoding="utf-8")
        print(f"wrote {PAGE.name}")
    return int(any(found.status == WRONG for found in findings))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
