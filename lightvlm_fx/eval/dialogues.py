"""Two questions about one picture, the second over the cache that the first left: what a bounded cache still knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lightvlm_fx.bundled.scenes import KINDS, Question, ask, render, sample_scene
from lightvlm_fx.compat import cache_argument, given_cache
from lightvlm_fx.eval.accuracy import SEED
from lightvlm_fx.pictures import prompt
from lightvlm_fx.schedule import Schedule

SHORT = tuple(kind for kind in KINDS if kind != "describe")
LONGEST = 8  # tokens of an answer, at most


@dataclass(frozen=True)
class Dialogue:
    picture: Image.Image
    questions: tuple[Question, Question]


@dataclass(frozen=True)
class Turns:
    """Of one model, for each of two turns: share of right answers, and of answers that equal the full model's."""

    name: str
    right: tuple[float, float]
    as_full: tuple[float, float]


def held_out(count: int, seed: int = SEED) -> list[Dialogue]:
    """`count` held-out scenes with two different short questions each."""
    rng, made = np.random.default_rng(seed), list[Dialogue]()
    while len(made) < count:
        scene = sample_scene(rng)
        first, second = (ask(scene, SHORT[int(rng.integers(len(SHORT)))], rng) for _ in range(2))
        if first is not None and second is not None and first.text != second.text:
            made.append(Dialogue(Image.fromarray(render(scene, rng, held_out=True)), (first, second)))
    return made


def answers(model: Any, processor: Any, dialogue: Dialogue) -> tuple[str, str]:
    """Greedy answers to both questions, one cache for both."""
    tokenizer, (first, second) = processor.tokenizer, dialogue.questions
    inputs = processor(images=[dialogue.picture], text=[prompt(processor, first.text)], return_tensors="pt")
    one = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False, return_dict_in_generate=True)
    said = one.sequences
    if said[0, -1] != tokenizer.eos_token_id:
        said = torch.cat([said, torch.full((1, 1), tokenizer.eos_token_id)], 1)
    more = tokenizer(f"<user> {second.text} <assistant>", return_tensors="pt")["input_ids"]
    ids = torch.cat([said, more], 1)
    mask = torch.ones_like(ids)
    cache = {cache_argument(model.forward): given_cache(one)}
    two = model.generate(input_ids=ids, attention_mask=mask, **cache, max_new_tokens=LONGEST, do_sample=False)
    new = (one.sequences[0, inputs["input_ids"].shape[1] :], two[0, ids.shape[1] :])
    first_answer, second_answer = (tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in new)
    return first_answer, second_answer


def turns(
    schedules: dict[str, Schedule], count: int, *, seed: int = SEED, backend: str = "eager",
    tick: Callable[[str, int], None] = lambda name, n: None,
) -> list[Turns]:  # fmt: skip
    """The full bundled model and each schedule in the same dialogues."""
    import lightvlm_fx as lightvlm
    from lightvlm_fx.bundled import load

    model, processor = load()
    dialogues, out, full = held_out(count, seed), list[Turns](), list[tuple[str, str]]()
    compiled = lightvlm.compile(model, "none", backend=backend)
    with torch.inference_mode():
        for name, schedule in {"full model": None, **schedules}.items():
            fast = model if schedule is None else compiled.lightvlm.with_schedule(schedule)
            said = []
            for dialogue in dialogues:
                said.append(answers(fast, processor, dialogue))
                tick(name, 1)
            full = full or said
            wanted = [tuple(q.answer for q in d.questions) for d in dialogues]
            out.append(Turns(name, _equal(said, wanted), _equal(said, full)))
    return out


def _equal(said: Sequence[tuple[str, ...]], wanted: Sequence[tuple[str, ...]]) -> tuple[float, float]:
    first, second = (float(np.mean([a[turn] == b[turn] for a, b in zip(said, wanted, strict=True)])) for turn in (0, 1))
    return first, second
