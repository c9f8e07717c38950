"""`lightvlm verify`: the folder is what was exported, its target takes it, and it answers as the model did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightvlm_fx.artifact.lint import lint
from lightvlm_fx.artifact.load import VLM
from lightvlm_fx.artifact.manifest import differing, inside, read
from lightvlm_fx.errors import InputError

GOOD, FILES, LINT, PARITY = 0, 1, 3, 4  # exit codes of `lightvlm verify`; 2 is a folder or call that cannot be read
# On logits, of the largest; or half again what was measured at export, where that was more: rounded weights differ as they may.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2, "int8": 5e-2}
CPU = ("CPUExecutionProvider",)


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
        return FILES if self.files else LINT if self.lint else PARITY if self.parity_wrong or self.source_wrong else GOOD

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"exit_code": self.exit_code, "ok": self.exit_code == GOOD}

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


def parity(folder: str | Path, manifest: dict[str, Any], providers: Sequence[str] = CPU, model: Any = None) -> dict[str, Any]:
    """Run the samples recorded at export: largest difference of logits, of the largest, and whether greedy tokens agree.

    Compared with the answers that were recorded, or with those of `model` now.
    """
    home = Path(folder)
    vlm = VLM(home, manifest, providers)
    worst, equal = 0.0, True
    for number, bucket in enumerate(manifest["buckets"]):
        arrays = {name: np.load(inside(home, file), allow_pickle=False) for name, file in bucket["samples"].items()}
        inputs = {k.removeprefix("inputs."): v for k, v in arrays.items() if k.startswith("inputs.")}
        pictures = {name: inputs[name] for name in bucket["arguments"]}
        new = arrays["sequences"].shape[1] - inputs["input_ids"].shape[1]
        wanted, sequences = (arrays["logits"], arrays["sequences"]) if model is None else _answer(model, inputs, new)
        logits = vlm.stages(number).start(inputs["input_ids"], inputs["attention_mask"], pictures, manifest["pad_token_id"]).logits
        worst = max(worst, float(np.abs(logits - wanted).max() / np.abs(wanted).max()))
        said = vlm.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        equal &= bool(np.array_equal(said, sequences))
    return {"logits": worst, "tokens_equal": equal}


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
    if schedule is not None and schedule.fingerprint != manifest["fingerprint"]:
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


def _check(folder: str | Path, home: Path, manifest: dict[str, Any], model: Any, providers: Sequence[str]) -> Verdict:
    verdict = Verdict(str(folder), differing(home, manifest))
    if verdict.files:
        verdict.skipped.append("lint and parity: the files are not those that were exported")
        return verdict
    verdict.lint, skipped = lint(home, manifest, providers)
    verdict.skipped += skipped
    if verdict.lint:
        verdict.skipped.append("parity: the graphs are not what the target takes")
        return verdict
    if manifest["target"] == "torch-export":
        verdict.skipped.append("parity: ONNX Runtime does not run torch-export stages; lightvlm.export checked them")
        return verdict
    if manifest["dtype"] == "bfloat16" and list(providers) == list(CPU):
        verdict.skipped.append("parity: ONNX Runtime has no bfloat16 kernels on CPU; name a GPU provider")
        return verdict
    verdict.parity = parity(home, manifest, providers)
    bound = max(TOLERANCE[manifest["dtype"]], 1.5 * (manifest.get("parity") or {"logits": 0.0})["logits"])
    if verdict.parity["logits"] > bound:
        apart = f"{verdict.parity['logits']:.1e} of the largest, above {bound:.0e}"
        verdict.parity_wrong.append(f"logits differ from those recorded at export by {apart}")
    if not verdict.parity["tokens_equal"] and manifest["dtype"] == "float32":
        verdict.parity_wrong.append("the greedy answer differs from the one recorded at export")
    if model is not None:
        verdict.source = parity(home, manifest, providers, model)
        if verdict.source["logits"] > bound:
            apart = f"{verdict.source['logits']:.1e} of the largest, above {bound:.0e}"
            verdict.source_wrong.append(f"logits differ from the model's by {apart}")
        if not verdict.source["tokens_equal"] and manifest["dtype"] == "float32":
            verdict.source_wrong.append("the greedy answer differs from the model's")
    return verdict
