"""How far a schedule moves the bundled model's predictions: finer than exact match, which has a ceiling.

Both models are led along the right answer, through `generate()` itself, so every cache works as it does in use. Drift
is KL(full model || model under a schedule) in nats, summed over the tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from lightvlm_fx.bundled.scenes import COLUMNS, KINDS, ROWS
from lightvlm_fx.eval.accuracy import SEED, Sample, held_out
from lightvlm_fx.pictures import prompt
from lightvlm_fx.schedule import Schedule


class Forced(LogitsProcessor):
    """Notes the log-probabilities of every step, and lets only the right token [B, T] of that step be chosen."""

    def __init__(self, right: Tensor) -> None:
        self.right, self.noted = right, list[Tensor]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] that leave one token."""
        wanted = self.right[:, len(self.noted)].unsqueeze(1)
        self.noted.append(scores.float().log_softmax(-1))
        return torch.full_like(scores, float("-inf")).scatter_(1, wanted, 0.0)


def predictions(model: Any, processor: Any, samples: Sequence[Sample], batch: int = 50) -> list[Tensor]:
    """For each sample the log-probabilities [T, V] at every token of its right answer, end of sequence included."""
    tokenizer, out = processor.tokenizer, []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        prompts = [prompt(processor, s.question.text) for s in part]
        inputs = processor(images=[s.picture for s in part], text=prompts, return_tensors="pt", padding=True)
        answers = [tokenizer(s.question.answer)["input_ids"] + [tokenizer.eos_token_id] for s in part]
        longest = max(map(len, answers))
        forced = Forced(torch.tensor([a + [tokenizer.pad_token_id] * (longest - len(a)) for a in answers]))
        model.generate(**inputs, max_new_tokens=longest, do_sample=False, logits_processor=LogitsProcessorList([forced]))
        noted = torch.stack(forced.noted, 1)
        out += [row[: len(a)].clone() for row, a in zip(noted, answers, strict=True)]
    return out


@dataclass(frozen=True)
class Drift:
    """Of one schedule, nats for each answer: by kind, and at the coordinates of descriptions alone."""

    name: str
    nats: dict[str, NDArray[np.float64]]


def drifts(
    schedules: dict[str, Schedule], per_kind: int, *, kinds: Sequence[str] = KINDS, seed: int = SEED, backend: str = "eager",
    tick: Callable[[str, int], None] = lambda name, n: None,
) -> list[Drift]:  # fmt: skip
    """Drift of each schedule on the same held-out samples."""
    import lightvlm_fx as lightvlm
    from lightvlm_fx.bundled import load

    model, processor = load()
    of_kind = {kind: held_out(per_kind, [kind], seed) for kind in kinds}
    places = torch.tensor(processor.tokenizer.convert_tokens_to_ids([*COLUMNS, *ROWS]))
    answers = {kind: [processor.tokenizer(s.question.answer, return_tensors="pt")["input_ids"][0] for s in samples]
               for kind, samples in of_kind.items()}  # fmt: skip
    out = []
    compiled = lightvlm.compile(model, "none", backend=backend)
    with torch.inference_mode():
        full = {}
        for kind, samples in of_kind.items():
            full[kind] = predictions(model, processor, samples)
            tick("full model", len(samples))
        for name, schedule in schedules.items():
            fast, nats = compiled.lightvlm.with_schedule(schedule), {}
            for kind, samples in of_kind.items():
                each = [divergence(a, b) for a, b in zip(full[kind], predictions(fast, processor, samples), strict=True)]
                nats[kind] = np.array([float(x.sum()) for x in each])
                if kind == "describe":
                    at = [torch.isin(tokens, places) for tokens in answers[kind]]
                    nats[f"{kind}: places"] = np.array([float(x[:-1][there].sum()) for x, there in zip(each, at, strict=True)])
                tick(name, len(samples))
            out.append(Drift(name, nats))
    return out


def divergence(full: Tensor, other: Tensor) -> Tensor:
    """KL divergence in nats at each position [T], from log-probabilities [T, V]."""
    return (full.exp() * (full - other)).sum(-1)


def compared(drift: Drift, with_: Drift, kind: str) -> tuple[float, float]:
    """Mean of the paired difference `drift` - `with_`, and its standard error."""
    more = drift.nats[kind] - with_.nats[kind]
    return float(more.mean()), float(more.std(ddof=1) / len(more) ** 0.5)
