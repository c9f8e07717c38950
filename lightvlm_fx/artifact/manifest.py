"""The manifest of an artifact, `lightvlm.json`: read, and refused where the folder is not what it says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lightvlm_fx.errors import ArtifactError

MANIFEST = "lightvlm.json"
WEIGHTS = "model.onnx.data"
SCHEMA_VERSION = 2  # 1: buckets for the example's picture sizes only
REQUIRED = ("target", "dtype", "architecture", "schedule", "fingerprint", "placeholders", "buckets", "files")


def read(folder: str | Path) -> dict[str, Any]:
    """The manifest of `folder`. Raises ArtifactError for a folder without one, another schema, or paths that lead out."""
    home = Path(folder)
    path = home / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{home} is no artifact: it holds no {MANIFEST}; make one with `lightvlm export`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not readable as a manifest: {error}; export again") from error
    if not isinstance(found, int) or found > SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema version {found}, this lightvlm_fx reads up to {SCHEMA_VERSION}; install a newer release")
    if found < SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema version {found}, this lightvlm_fx reads {SCHEMA_VERSION}; export again, or use the release "
                            f"that exported it ({manifest.get('lightvlm_fx', 'an older one')})")  # fmt: skip
    missing = [key for key in REQUIRED if key not in manifest]
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(missing)}; export again")
    try:
        named = _named(manifest)
        for noted in manifest["files"].values():
            if not isinstance(noted["sha256"], str) or not isinstance(noted["bytes"], int):
                raise TypeError(f"a file has the entry {noted!r}")
        for name in (*manifest["files"], *named):
            inside(home, name)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{path} is not built as a manifest is: {type(error).__name__} {error}; export again") from error
    unlisted = sorted(set(named) - set(manifest["files"]))
    if unlisted:
        raise ArtifactError(f"{path} names {', '.join(unlisted)} without a hash; export again")
    return manifest


def _named(manifest: dict[str, Any]) -> list[str]:
    """Every file that the manifest tells to open."""
    shared = [] if manifest["target"] == "torch-export" else [WEIGHTS]
    return shared + [name for bucket in manifest["buckets"]
                     for name in (*(stage["file"] for stage in bucket["stages"].values()), *bucket["samples"].values())]  # fmt: skip


def inside(home: Path, name: str) -> Path:
    """The file `name` of the folder. Raises ArtifactError where it lies, or links, outside."""
    path = home / name
    root = home.resolve()
    if Path(name).is_absolute() or not path.resolve().is_relative_to(root):
        raise ArtifactError(f"{home}: the manifest names {name!r}, which leads out of the folder; the artifact is not to be trusted")
    return path


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def differing(folder: str | Path, manifest: dict[str, Any], only: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with the folder's files, a line each: missing, of another size, or changed. `only` names file endings."""
    home, wrong = Path(folder), []
    for name, noted in manifest["files"].items():
        if only and not name.endswith(only):
            continue
        path = inside(home, name)
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != noted["bytes"]:
            wrong.append(f"{name} has {path.stat().st_size} bytes, the manifest says {noted['bytes']}")
        elif digest(path) != noted["sha256"]:
            wrong.append(f"{name} has another SHA-256 than the manifest says")
    return wrong
