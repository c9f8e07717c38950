"""What `lightvlm demo` runs: the same questions to the full and to the compiled model, answers side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lightvlm_fx.pictures import inputs_of


@dataclass(frozen=True)
class Answered:
    """One question about one picture."""

    picture: str
    question: str
    full: str
    compiled: str
    full_s: float
    compiled_s: float
    tokens_per_layer: tuple[int, ...]


def bundled() -> list[tuple[Path, list[str]]]:
    """The pictures in the box, each with questions that it can answer (a text file of the same name)."""
    from lightvlm_fx.bundled import PICTURES

    return [(p, p.with_suffix(".txt").read_text().splitlines()) for p in sorted(PICTURES.glob("*.png"))]


def ask(model: Any, processor: Any, picture: Image.Image, question: str, **options: Any) -> tuple[str, float]:
    """The greedy answer, and the seconds that generate() took."""
    inputs = inputs_of(processor, question, [picture], "pt")
    start = time.perf_counter()
    with torch.inference_mode():
        tokens = model.generate(**inputs, **{"max_new_tokens": 128, "do_sample": False} | options)
    seconds = time.perf_counter() - start
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)[0].strip(), seconds


def answers(
    model: Any, fast: Any, processor: Any, items: list[tuple[str, Image.Image, list[str]]], tell: Callable[[str], None]
) -> Iterator[Answered]:
    """Warm both up, then answer every question with both."""
    tell("running the full model once")
    ask(model, processor, items[0][1], items[0][2][0])
    tell("capturing, rewriting and compiling (once for all questions)")
    ask(fast, processor, items[0][1], items[0][2][0], min_new_tokens=4, max_new_tokens=4)
    for name, picture, questions in items:
        for question in questions:
            tell(f"{name}: {question}")
            full, full_s = ask(model, processor, picture, question)
            compiled, compiled_s = ask(fast, processor, picture, question)
            last = [b for b in fast.lightvlm.report.buckets if b.stage == "prefill"][-1]
            yield Answered(name, question, full, compiled, full_s, compiled_s, last.tokens_per_layer)
