"""`lightvlm eval --artifact`: exported folders of the bundled model on held-out questions, beside the compiled model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import lightvlm_fx as lightvlm
from lightvlm_fx.artifact.load import load
from lightvlm_fx.artifact.manifest import read
from lightvlm_fx.bundled import load as bundled
from lightvlm_fx.eval.accuracy import MAX_ANSWER, held_out
from lightvlm_fx.pictures import prompt
from lightvlm_fx.schedule import Schedule


@dataclass(frozen=True)
class ArtifactScore:
    """One artifact over questions: the share of right answers by kind, and of answers with the compiled model's very tokens."""

    name: str
    right: dict[str, float]
    compiled_right: float
    identical: float
    questions: int


def scores(
    folders: Sequence[Path], samples: int, *, kinds: Sequence[str], seed: int, tick: Callable[[str, int], None] = lambda name, n: None
) -> list[ArtifactScore]:
    """Ask every artifact, and the compiled float32 model under the artifact's schedule, one question at a time."""
    model, processor = bundled()
    asked = held_out(samples, kinds, seed)
    out = []
    for folder in folders:
        vlm, manifest = load(folder), read(folder)
        fast = lightvlm.compile(model, Schedule(**manifest["schedule"]), backend="eager")
        right: dict[str, list[bool]] = {kind: [] for kind in kinds}
        theirs, same = [], []
        for sample in asked:
            text = prompt(processor, sample.question.text)
            inputs = processor(images=[sample.picture], text=[text], return_tensors="pt")
            answers = [m.generate(**inputs, max_new_tokens=MAX_ANSWER, do_sample=False) for m in (fast, vlm)]
            said = [processor.batch_decode(a[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip() for a in answers]
            theirs.append(said[0] == sample.question.answer)
            right[sample.question.kind].append(said[1] == sample.question.answer)
            same.append(answers[0].tolist() == answers[1].tolist())
            tick(str(folder), 1)
        shares = {kind: float(np.mean(found)) for kind, found in right.items()}
        out.append(ArtifactScore(str(folder), shares, float(np.mean(theirs)), float(np.mean(same)), len(asked)))
    return out
