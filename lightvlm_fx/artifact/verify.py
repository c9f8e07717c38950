"""`lightvlm verify`: the folder is what was exported, its target takes it, and it answers as the model did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightvlm_fx.artifact.files import Files, unlisted
from lightvlm_fx.artifact.lint import lint
from lightvlm_fx.artifact.load import VLM
from lightvlm_fx.artifact.manifest import MANIFEST, read
from lightvlm_fx.artifact.sampling import Sampling
from lightvlm_fx.artifact.schema import LOOSEST, SAMPLES, shapes
from lightvlm_fx.artifact.stages import tokens_of_pictures
from lightvlm_fx.artifact.targets import TARGETS
from lightvlm_fx.errors import ArtifactError, InputError

GOOD, FILES, LINT, PARITY = 0, 1, 3, 4  # exit codes of `lightvlm verify`; 2 is a folder or call that cannot be read
# On logits, of the largest; or half again what was measured at export, where that was more, up to LOOSEST: rounded weights differ.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2, "int8": 5e-2, "int4": 0.25}
CPU = ("CPUExecutionProvider",)
# Endings of what transformers reads from a folder unasked; the last is a folder itself.
READ_BESIDE = (".json", ".jinja", ".model", ".txt", ".py", "additional_chat_templates")


@dataclass
class Verdict:
    """What was checked: one entry a check, with what is wrong."""

    folder: str
    files: list[str] = field(default_factory=list)
    lint: list[str] = field(default_factory=list)
    parity: dict[str, Any] | None = None
    parity_wrong: list[str] = field(default_factory=list)
    source: dict[str, Any] | None = None
    source_wrong: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """What `lightvlm verify` exits with: 0 where all is well, 1 files, 3 graphs, 4 answers."""
        return FILES if self.files else LINT if self.lint else PARITY if self.parity_wrong or self.source_wrong else GOOD

    def as_dict(self) -> dict[str, Any]:
        """The fields, `exit_code` and `ok`, in what JSON can hold."""
        plain = asdict(self) | {"exit_code": self.exit_code, "ok": self.exit_code == GOOD}
        for name in ("parity", "source"):  # JSON has no infinity
            if plain[name]:
                plain[name] = {k: v if np.isfinite(v) else None for k, v in plain[name].items()}
        return plain

    def __str__(self) -> str:
        def line(name: str, wrong: list[str], good: str) -> list[str]:
            left_out = any(what.startswith(name) or f"and {name}" in what for what in self.skipped)
            said = "FAILED" if wrong else "skipped" if left_out else "ok"
            return [f"{name:<8} {said:<8} {good if said == 'ok' else ''}".rstrip(), *(f"  {w}" for w in wrong)]

        rows = line("files", self.files, "every file has the hash that the manifest says")
        rows += line("lint", self.lint, "operators, opset, shapes and weights are what the target takes")
        rows += line("parity", self.parity_wrong, _shown(self.parity))
        if self.source is not None:
            rows += line("source", self.source_wrong, _shown(self.source))
        return "\n".join([*rows, *(f"skipped: {what}" for what in self.skipped)])


def _shown(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"logits within {found['logits']:.1e} of the largest, tokens {'equal' if found['tokens_equal'] else 'differ'}"


def parity(
    folder: str | Path | Files, manifest: dict[str, Any], providers: Sequence[str] = CPU, model: Any = None
) -> dict[str, Any]:
    """Run the samples recorded at export of an artifact, a folder or its open files, and compare with what was answered then.

    With `model`: with its answers now.

    `logits`: the largest difference at the end of the prompt, of the largest. `tokens_equal`: whether the greedy tokens are the same.
    `tokens_apart`: with those tokens as the answer, how far one is at most from being the likeliest, of the largest logit: what rounding
    may do to a choice is small. Infinite where logits are not finite. Raises ArtifactError where samples cannot be run.
    """
    files = Files.of(folder, manifest)
    vlm = VLM(files, manifest, providers)
    found = {"logits": 0.0, "tokens_equal": True, "tokens_apart": 0.0}
    for number, bucket in enumerate(manifest["buckets"]):
        arrays = _samples(files, bucket)
        inputs = {k.removeprefix("inputs."): v for k, v in arrays.items() if k.startswith("inputs.")}
        pictures = {name: inputs[name] for name in bucket["arguments"]}
        length = inputs["input_ids"].shape[1]
        new = arrays["sequences"].shape[1] - length
        wanted, sequences = (arrays["logits"], arrays["sequences"]) if model is None else _answer(model, inputs, new)
        try:
            said = vlm.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            if why := vlm.refused(number, tokens_of_pictures(ids, mask, vlm.marks), mask, pictures, new):
                raise InputError(why)
            run = vlm.stages(number).start(ids, mask, pictures, manifest["pad_token_id"])
            found["logits"] = max(found["logits"], _apart(run.logits, wanted))
            found["tokens_apart"] = max(found["tokens_apart"], _after(vlm, run, sequences, length))
        except InputError as error:
            raise ArtifactError(f"{files.home}: the samples of bucket {number} are not what it takes: {error}; export again") from error
        found["tokens_equal"] &= bool(np.array_equal(said, sequences))
    return found


def _samples(files: Files, bucket: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays recorded of a bucket. Raises ArtifactError where one has another shape than the bucket, or ids are no tokens."""
    arrays = {name: files.array(file) for name, file in bucket["samples"].items()}
    vocabulary = shapes(bucket, "prefill", "outputs")["logits"][1]
    rows, length = bucket["rows"], bucket["prompt_tokens"]
    shown = {name: arrays[name].shape for name in SAMPLES}
    fits = arrays["sequences"].ndim == 2 and arrays["sequences"].shape[0] == rows and arrays["sequences"].shape[1] > length
    wanted = {"inputs.input_ids": (rows, length), "inputs.attention_mask": (rows, length), "logits": (rows, vocabulary)}
    for name in SAMPLES:
        fits &= wanted.get(name, shown[name]) == shown[name] and arrays[name].dtype.kind in ("f" if name == "logits" else "iu")
    tokens = arrays["sequences"][..., length:] if fits else np.zeros(1)
    if not fits or tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ArtifactError(f"{files.home}: the samples {bucket['samples']['sequences']} and beside it, of the shapes {shown}, are not "
                            f"of a bucket of {rows} rows of {length} tokens and a vocabulary of {vocabulary}; export again")  # fmt: skip
    return arrays


def _apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far `ours` is from `theirs` at most, of the largest; infinite where one of the values is not finite."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all() and theirs.any()):
        return np.inf
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _after(vlm: VLM, run: Any, sequences: np.ndarray, length: int) -> float:
    """How far a token of sequences [B, S + new] is at most from being the likeliest after those before it, of the largest logit."""
    sampling, worst = Sampling.of({k: v for k, v in vlm.defaults.items() if k == "repetition_penalty"}), 0.0
    for at in range(length, sequences.shape[1]):
        scores = sampling.penalised(run.logits, sequences[:, :at])
        if not np.isfinite(scores).all():
            return np.inf
        size = np.abs(scores).max()
        scores[:, vlm.manifest["eos_token_id"]] = -np.inf  # the answer was recorded with a least length
        chosen = np.take_along_axis(scores, sequences[:, at : at + 1], 1)[:, 0]
        worst = max(worst, float((scores.max(1) - chosen).max() / size))
        if at + 1 < sequences.shape[1]:
            run.step(sequences[:, at])
    return worst


def _answer(model: Any, inputs: dict[str, np.ndarray], new: int) -> tuple[np.ndarray, np.ndarray]:
    """A torch model's logits [B, V] at the end of the prompt, and its greedy tokens [B, S + new]."""
    import torch

    tensors = {k: torch.as_tensor(v, device=model.device) for k, v in inputs.items()}
    tensors = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    flags = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**tensors, max_new_tokens=new, min_new_tokens=new, **flags)
    return out.logits[0].float().cpu().numpy(), out.sequences.cpu().numpy()


def _check_is_source(model: Any, manifest: dict[str, Any]) -> None:
    """Raises InputError for a model that the artifact cannot have been made from."""
    if type(model).__name__ != manifest["architecture"]:
        raise InputError(f"the artifact was made from a {manifest['architecture']}, got a {type(model).__name__}")
    wanted = manifest["dtype"] if manifest["dtype"] in ("float16", "bfloat16") else "float32"
    if str(model.dtype) != f"torch.{wanted}":
        raise InputError(f"the artifact computes in {wanted}, the model in {model.dtype}: load it with dtype={wanted!r}")
    schedule = getattr(getattr(model, "lightvlm", None), "schedule", None)
    # version 0.1 hashed options of methods that were not chosen, too: the same schedule, read anew, has none
    if schedule is not None and schedule.fingerprint not in (manifest["fingerprint"], type(schedule)(**manifest["schedule"]).fingerprint):
        raise InputError(f"the artifact's schedule is {manifest['fingerprint']}, the compiled model's {schedule.fingerprint}")


def verify(folder: str | Path, *, model: Any = None, providers: Sequence[str] = CPU) -> Verdict:
    """Check an artifact, with `model`, the source as `lightvlm.compile` makes it now, also whether both answer alike.

    Raises ArtifactError where its manifest cannot be read, InputError for a provider that is not there or another kind of model.
    """
    home, manifest = Path(folder), read(folder)
    if model is not None:
        _check_is_source(model, manifest)
    verdict = _check(folder, home, manifest, model, providers)
    if model is not None and verdict.source is None:
        verdict.skipped.append("source: the model was not asked, as the checks ended before")
    return verdict


def _compared(files: Files, manifest: dict[str, Any], providers: Sequence[str], model: Any) -> tuple[dict[str, Any] | None, list[str]]:
    """Parity with what was recorded, or with `model`, and what is wrong with it."""
    recorded, owner = ("those recorded at export", "the one recorded at export") if model is None else ("the model's", "the model's")
    try:
        found = parity(files, manifest, providers, model)
    except ArtifactError as error:
        return None, [str(error)]
    bound, wrong = bound_of(manifest), []
    if found["logits"] > bound:
        wrong.append(f"logits differ from {recorded} by {found['logits']:.1e} of the largest, above {bound:.0e}")
    if not found["tokens_equal"] and manifest["dtype"] == "float32":
        wrong.append(f"the greedy answer differs from {owner}")
    elif found["tokens_apart"] > 2 * bound:  # each side may be off by the bound
        wrong.append(f"the greedy answer differs from {owner}: one of its tokens is {found['tokens_apart']:.1e} of the largest logit "
                     f"from being the likeliest, above {2 * bound:.0e}")  # fmt: skip
    return found, wrong


def bound_of(manifest: dict[str, Any]) -> float:
    """How far logits may be from those recorded, of the largest."""
    recorded = (manifest.get("parity") or {"logits": 0.0})["logits"]
    return float(min(max(TOLERANCE[manifest["dtype"]], 1.5 * recorded), LOOSEST[manifest["dtype"]]))


def _check(folder: str | Path, home: Path, manifest: dict[str, Any], model: Any, providers: Sequence[str]) -> Verdict:
    files = Files(home, manifest)
    verdict = Verdict(str(folder), [*files.wrong, *(
        f"{name} is not listed in the manifest, and transformers would read it with the processor: take it out of the folder"
        for name in unlisted(home, (MANIFEST, *manifest["files"])) if name.endswith(READ_BESIDE)
    )])  # fmt: skip
    if verdict.files:
        verdict.skipped.append("lint and parity: the files are not those that were exported")
        return verdict
    verdict.lint, skipped = lint(files, manifest, providers)
    verdict.skipped += skipped
    if verdict.lint:
        verdict.skipped.append("parity: the graphs are not what the target takes")
        return verdict
    if not TARGETS[manifest["target"]].runtime:
        verdict.skipped.append(f"parity: ONNX Runtime does not run {manifest['target']} stages; lightvlm.export checked them")
        return verdict
    if manifest["dtype"] == "bfloat16" and list(providers) == list(CPU):
        verdict.skipped.append("parity: ONNX Runtime has no bfloat16 kernels on CPU; name a GPU provider")
        return verdict
    verdict.parity, verdict.parity_wrong = _compared(files, manifest, providers, None)
    if model is not None and verdict.parity is not None:
        verdict.source, verdict.source_wrong = _compared(files, manifest, providers, model)
    return verdict
