"""An artifact as a model of Triton's, or as KServe's InferenceService. Needs neither, and no torch."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightvlm_fx.artifact.files import Files
from lightvlm_fx.artifact.manifest import MANIFEST, read
from lightvlm_fx.artifact.targets import TARGETS
from lightvlm_fx.errors import ArtifactError, InputError

FOLDER = "artifact"  # beside Triton's model.py
PROCESSOR = {"processor_config.json", "preprocessor_config.json"}  # one of them stands where a processor does
MODEL = "from lightvlm_fx.integrations.triton import TritonPythonModel  # noqa: F401\n"
CONFIG = """\
name: {name}
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "image" data_type: TYPE_STRING dims: [ -1 ] optional: true }},
  {{ name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true }}
]
output [
  {{ name: "text_output" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "tokens" data_type: TYPE_INT32 dims: [ -1 ] }},
  {{ name: "finish_reason" data_type: TYPE_STRING dims: [ 1 ] }}
]
instance_group [ {{ count: 1 {device} }} ]
parameters {{ key: "providers" value {{ string_value: {providers} }} }}
"""
SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    containers:
      - name: kserve-container
        image: {image}
        command: ["lightvlm", "serve", "/mnt/models"]
        args: {args}
        env:
          - name: STORAGE_URI
            value: {uri}
        ports:
          - containerPort: 8080
            protocol: TCP
        readinessProbe:
          httpGet:
            path: /health
            port: 8080
"""
GPU = """\
        resources:
          limits:
            nvidia.com/gpu: "1"
"""


def triton(artifact: str | Path, out: str | Path, *, name: str | None = None, providers: Sequence[str]) -> Path:
    """Write `out`/`name`, a model of a Triton model repository with a copy of the artifact in it, whole or not at all.

    `name` is the artifact's folder's by default, `providers` what its graphs run on. Returns the path.
    Raises ArtifactError for files that are not those that were exported, and where nothing can answer prompts from them; InputError
    for a name that is none, or that stands in `out` already.
    """
    home, manifest, name = _checked(artifact, name)
    model = Path(out) / name
    if model.exists():
        raise InputError(f"{model} is there already; give another --name or --output, or delete it")
    files = Files(home, manifest)
    if files.wrong:
        raise ArtifactError(f"{home} is not what was exported:\n  " + "\n  ".join(files.wrong))
    device = "kind: KIND_CPU" if _on_cpu(providers) else "kind: KIND_GPU gpus: [ 0 ]"
    model.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.partial-", dir=model.parent) as scratch:
        aside = Path(scratch) / name
        for file in manifest["files"]:
            copy = aside / "1" / FOLDER / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            files.copy(file, copy)
        shutil.copyfile(home / MANIFEST, aside / "1" / FOLDER / MANIFEST)
        (aside / "1" / "model.py").write_text(MODEL, encoding="utf-8")
        config = CONFIG.format(name=json.dumps(name), device=device, providers=json.dumps(",".join(providers)))
        (aside / "config.pbtxt").write_text(config, encoding="utf-8")
        aside.rename(model)
    return model


def kserve(
    artifact: str | Path, out: str | Path, *, image: str, storage_uri: str, name: str | None = None, providers: Sequence[str]
) -> Path:
    """Write `out`/`name`.yaml, an InferenceService that runs `lightvlm serve` in `image` on the artifact at `storage_uri`.

    `providers` is what it runs on, as `lightvlm serve --provider` takes it. Returns the path. Raises as `triton` does.
    """
    _, _, name = _checked(artifact, name)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise InputError(f"a service's name in Kubernetes is at most 63 small letters, digits and '-', got {name!r}; give --name")
    args = ["--host", "0.0.0.0", "--port", "8080", "--name", name, *(word for p in providers for word in ("--provider", p))]
    text = SERVICE.format(name=name, image=json.dumps(image), uri=json.dumps(storage_uri), args=json.dumps(args))
    path = Path(out) / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if _on_cpu(providers) else text + GPU, encoding="utf-8")
    return path


def _checked(artifact: str | Path, name: str | None) -> tuple[Path, dict[str, Any], str]:
    """The artifact's folder, its manifest, and the model's name."""
    home, manifest = Path(artifact), read(artifact)
    name = home.resolve().name if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"a model's name holds letters, digits, '.', '_' and '-', got {name!r}; give --name")
    if not TARGETS[manifest["target"]].runtime:
        raise ArtifactError(f"{home} was exported for {manifest['target']}, which nothing here runs; export for onnxruntime or openvino")
    if not PROCESSOR & set(manifest["files"]):
        raise ArtifactError(f"{home} was exported without a processor, which makes a prompt of text and pictures; export it with one")
    return home, manifest, name


def _on_cpu(providers: Sequence[str]) -> bool:
    return all("CPU" in provider.upper() for provider in providers)
