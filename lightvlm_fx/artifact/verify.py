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
    skipped: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return FILES if self.files else LINT if self.lint else PARITY if self.parity_wrong else GOOD

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"exit_code": self.exit_code, "ok": self.exit_code == GOOD}

    def __str__(self) -> str:
        def line(name: str, wrong: list[str], good: str) -> list[str]:
            left_out = any(what.startswith(name) or f"and {name}" in what for what in self.skipped)
            said = "FAILED" if wrong else "skipped" if left_out else "ok"
            return [f"{name:<8} {said:<8} {good if said == 'ok' else ''}".rstrip(), *(f"  {w}" for w in wrong)]

        rows = line("files", self.files, "every file has the hash that the manifest says")
        rows += line("lint", self.lint, "operators, opset, shapes and weights are what the target takes")
        shown = ""
        if self.parity is not None:
            tokens = "equal" if self.parity["tokens_equal"] else "differ"
            shown = f"logits within {self.parity['logits']:.1e} of the largest, tokens {tokens}"
        rows += line("parity", self.parity_wrong, shown)
        return "\n".join([*rows, *(f"skipped: {what}" for what in self.skipped)])


def parity(folder: str | Path, manifest: dict[str, Any], providers: Sequence[str] = CPU) -> dict[str, Any]:
    """Run the samples recorded at export: largest difference of logits, of the largest, and whether greedy tokens agree."""
    home = Path(folder)
    vlm = VLM(home, manifest, providers)
    worst, equal = 0.0, True
    for number, bucket in enumerate(manifest["buckets"]):
        arrays = {name: np.load(inside(home, file), allow_pickle=False) for name, file in bucket["samples"].items()}
        inputs = {k.removeprefix("inputs."): v for k, v in arrays.items() if k.startswith("inputs.")}
        ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
        logits = vlm.stages(number).start(ids, mask, pixels, manifest["pad_token_id"]).logits
        worst = max(worst, float(np.abs(logits - arrays["logits"]).max() / np.abs(arrays["logits"]).max()))
        new = arrays["sequences"].shape[1] - ids.shape[1]
        said = vlm.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        equal &= bool(np.array_equal(said, arrays["sequences"]))
    return {"logits": worst, "tokens_equal": equal}


def verify(folder: str | Path, *, providers: Sequence[str] = CPU) -> Verdict:
    """Check an artifact. Raises ArtifactError where its manifest cannot be read, InputError for a provider that is not there."""
    home, manifest = Path(folder), read(folder)
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
    return verdict
