"""The manifest of an artifact, `lightvlm.json`: read, and refused where it is not what a manifest is."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lightvlm_fx.artifact.files import Files, inside, open_file
from lightvlm_fx.artifact.schema import WEIGHTS, Wrong, check
from lightvlm_fx.artifact.targets import TARGETS
from lightvlm_fx.errors import ArtifactError

MANIFEST = "lightvlm.json"
SCHEMA_VERSION = 3  # 1: buckets for the example's picture sizes only; 2: prompts padded to the bucket's length
OLDEST = 2  # that is read
REQUIRED = ("target", "dtype", "architecture", "schedule", "fingerprint", "placeholders", "buckets", "files")
MOST = 2**26  # bytes


def parsed(home: Path) -> dict[str, Any]:
    """What stands in the manifest of the folder `home`, unchecked. Raises ArtifactError where that is no JSON object."""
    path = home / MANIFEST
    if not os.path.lexists(path):
        raise ArtifactError(f"{home} is no artifact: it holds no {MANIFEST}; make one with `lightvlm export`")
    with open_file(home, MANIFEST) as stream:
        data = stream.read(MOST + 1)
    try:
        if len(data) > MOST:
            raise ValueError(f"it has more than {MOST} bytes")
        found = json.loads(data.decode("utf-8"), parse_constant=_no_number)
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}, no object")
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not readable as a manifest: {error}; export again") from error
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def read(folder: str | Path) -> dict[str, Any]:
    """The manifest of `folder`: every type, range and sum in it holds, every path stays inside, and every file to open has a hash.

    Raises ArtifactError for a folder without one, another schema, or where one of these does not hold, with the place.
    """
    home = Path(folder)
    path = home / MANIFEST
    manifest = parsed(home)
    if "schema_version" not in manifest:
        raise ArtifactError(f"{path} is not readable as a manifest: it lacks schema_version; export again")
    found = manifest["schema_version"]
    if type(found) is not int or found > SCHEMA_VERSION:
        raise ArtifactError(f"{path} has schema version {found}, this lightvlm_fx reads up to {SCHEMA_VERSION}; install a newer release")
    if found < OLDEST:
        raise ArtifactError(f"{path} has schema version {found}, this lightvlm_fx reads {OLDEST} to {SCHEMA_VERSION}; export again, or use "
                            f"the release that exported it ({manifest.get('lightvlm_fx', 'an older one')})")  # fmt: skip
    missing = [key for key in REQUIRED if key not in manifest]
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(missing)}; export again")
    try:
        check(manifest)
    except Wrong as error:
        raise ArtifactError(f"{path} is not built as a manifest is: {error}; export again") from error
    named = _named(manifest)
    for name in (*manifest["files"], *named):
        inside(home, name)
    unlisted = sorted(set(named) - set(manifest["files"]))
    if unlisted:
        raise ArtifactError(f"{path} names {', '.join(unlisted)} without a hash; export again")
    return manifest


def _named(manifest: dict[str, Any]) -> list[str]:
    """Every file that the manifest tells to open."""
    shared = [WEIGHTS] if TARGETS[manifest["target"]].onnx else []
    return shared + [name for bucket in manifest["buckets"]
                     for name in (*(stage["file"] for stage in bucket["stages"].values()), *bucket["samples"].values(),
                                  *_tables(bucket))]  # fmt: skip


def _tables(bucket: dict[str, Any]) -> list[str]:
    lengths = bucket.get("lengths") or {}
    return [lengths[name] for name in ("kept", "reach") if lengths.get(name)]


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def differing(folder: str | Path, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with the folder's files, a line each: missing, of another size, or changed."""
    return Files(Path(folder), manifest).wrong
