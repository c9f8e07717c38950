"""Accuracy of the bundled model on held-out scenes, full and under schedules, kind by kind.

Scenes come from a seed that training never used, digits from scans that it never saw. An answer counts
when it equals the right one word for word.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lightvlm_fx.bundled.scenes import KINDS, Question, ask, render, sample_scene
from lightvlm_fx.errors import UnknownName
from lightvlm_fx.pictures import prompt
from lightvlm_fx.schedule import Schedule

SEED = 7_000_000
_THING = re.compile(r"at x\d y\d there is a \w+ \w+")
MAX_ANSWER = 120  # tokens; the longest description has about 105


@dataclass(frozen=True)
class Sample:
    picture: Image.Image
    question: Question


@dataclass(frozen=True)
class Score:
    """Exact match of one model over samples."""

    name: str
    right: dict[str, list[bool]]
    placed: tuple[float, ...] = ()  # of every description, the share of things that it names at their places
    tokens: int = 144  # visual ones of a picture, before any cut

    @property
    def grounding(self) -> float:
        """Mean share of things named at their places in descriptions; nan without descriptions."""
        return float(np.mean(self.placed)) if self.placed else float("nan")

    def accuracy(self, kind: str | None = None) -> float:
        """Share of right answers of one kind, or the mean over kinds."""
        if kind is None:
            return float(np.mean([np.mean(v) for v in self.right.values()]))
        return float(np.mean(self.right[kind]))


def held_out(per_kind: int, kinds: Iterable[str] = KINDS, seed: int = SEED) -> list[Sample]:
    """`per_kind` questions of each kind, each about a scene of its own; descriptions of 60 tokens and more."""
    samples = []
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownName.of("kind of question", kind, KINDS)
        rng = np.random.default_rng([seed, KINDS.index(kind)])
        made = 0
        while made < per_kind:
            scene = sample_scene(rng, int(rng.integers(6, 9)) if kind == "describe" else None)
            question = ask(scene, kind, rng)
            if question is not None:
                samples.append(Sample(Image.fromarray(render(scene, rng, held_out=True)), question))
                made += 1
    return samples


def answer(model: Any, processor: Any, samples: Sequence[Sample], batch: int = 50) -> list[str]:
    """Greedy answers, `batch` at a time in left-padded batches."""
    out = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        prompts = [prompt(processor, s.question.text) for s in part]
        inputs = processor(images=[s.picture for s in part], text=prompts, return_tensors="pt", padding=True)
        tokens = model.generate(**inputs, max_new_tokens=MAX_ANSWER, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        out += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return out


def evaluate(model: Any, processor: Any, samples: Sequence[Sample], name: str, tick: Callable[[int], None] = lambda n: None) -> Score:
    """Exact match of `model`; `tick(n)` is called after every n answers."""
    right: dict[str, list[bool]] = defaultdict(list)
    shares = []
    for kind in dict.fromkeys(s.question.kind for s in samples):
        part = [s for s in samples if s.question.kind == kind]
        for sample, text in zip(part, answer(model, processor, part), strict=True):
            right[kind].append(text == sample.question.answer)
            if kind == "describe":
                shares.append(placed(text, sample.question.answer))
        tick(len(part))
    return Score(name, dict(right), tuple(shares))


def placed(text: str, answer: str) -> float:
    """Share of the things of a right description `answer` that `text` names at their places."""
    things, named = (set(_THING.findall(words)) for words in (answer, text))
    return len(things & named) / len(things)


def baselines(schedule: Schedule, keep: float) -> dict[str, Schedule]:
    """`random` and `uniform`, pruning and merging, at the layers and counts of a pyramid schedule."""
    layers = tuple(cut.layer for cut in schedule.cuts)
    made = {}
    for name in ("random", "uniform"):
        for combine in ("prune", "merge"):
            made[f"{name} + {combine}"] = Schedule.preset(name, keep=keep, layers=layers, combine=combine)
    return made


def mean_visual_tokens(schedule: Schedule, tokens: int, depth: int) -> float:
    """Mean over layers of the visual tokens that one image of `tokens` keeps."""
    left = [tokens, *schedule.budgets(tokens)]
    return sum(left[number] for number in schedule.token_sets(depth)) / depth


def scores(
    schedules: dict[str, Schedule],
    per_kind: int,
    *,
    kinds: Sequence[str] = KINDS,
    seed: int = SEED,
    backend: str = "eager",
    tick: Callable[[str, int], None] | None = None,
) -> list[Score]:
    """The full bundled model, and each schedule, on the same held-out samples."""
    import lightvlm_fx as lightvlm
    from lightvlm_fx.bundled import load

    model, processor = load()
    samples = held_out(per_kind, kinds, seed)
    scores = []
    compiled = lightvlm.compile(model, "none", backend=backend)
    with torch.inference_mode():
        for name, schedule in {"full model": None, **schedules}.items():
            fast = model if schedule is None else compiled.lightvlm.with_schedule(schedule)
            scores.append(evaluate(fast, processor, samples, name, lambda n, name=name: tick and tick(name, n)))  # type: ignore[misc]
    return scores
