"""A folder, or a hub name, as an engine: an artifact, for which no torch is needed, or a model compiled under a schedule."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightvlm_fx.errors import InputError

if TYPE_CHECKING:
    from lightvlm_fx.schedule import Schedule
    from lightvlm_fx.serving.artifact import ArtifactEngine
    from lightvlm_fx.serving.model import ModelEngine


def open_engine(
    source: str | None = None, *, name: str | None = None, schedule: Schedule | str | Path | None = None, backend: str = "inductor",
    device: str = "cpu", providers: Sequence[str] = ("CPUExecutionProvider",), tell: Callable[[str], None] = lambda text: None,
) -> ModelEngine | ArtifactEngine:  # fmt: skip
    """What answers from `source`: the folder of an artifact or a model, a hub name, or None for the bundled model. Warm, of name `name`.

    A model is compiled under `schedule` (default: the preset lightvlm) for `backend` on `device`; `tell` hears what takes time.
    An artifact runs on `providers`, as `load` takes them. Raises InputError where there is no such
    source, and for a schedule of an artifact, which has its own.
    """
    called = name or (Path(source).resolve().name if source and Path(source).is_dir() else source) or "bundled"
    if source is None or not is_artifact(source):
        return _model(source, "lightvlm" if schedule is None else schedule, backend, device, called, tell)
    if schedule is not None:
        raise InputError(f"{source} is an artifact, whose schedule is fixed; give no schedule, or the model that it was exported from")
    return _artifact(source, providers, called)


def is_artifact(source: str) -> bool:
    from lightvlm_fx.artifact.manifest import MANIFEST

    return (Path(source) / MANIFEST).is_file()


def _artifact(folder: str, providers: Sequence[str], name: str) -> ArtifactEngine:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from lightvlm_fx.artifact.load import load
    from lightvlm_fx.serving.artifact import ArtifactEngine

    return ArtifactEngine(load(folder, providers=providers), name)


def _model(
    source: str | None, schedule: Schedule | str | Path, backend: str, device: str, name: str, tell: Callable[[str], None]
) -> ModelEngine:
    import lightvlm_fx as lightvlm
    from lightvlm_fx.serving.model import ModelEngine

    model, processor = load_model(source)
    engine = ModelEngine(lightvlm.compile(model.to(device), schedule, backend=backend), processor, name)
    tell("capturing, rewriting and compiling (once for all questions)")
    engine.warm_up()
    return engine


def load_model(name: str | None) -> tuple[Any, Any]:
    """A model and its processor. Raises InputError where there is no folder, or transformers finds no such model in it."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()
    if name is None:
        from lightvlm_fx.bundled import load

        return load()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    place = Path(name)
    if not place.is_dir() and (place.is_absolute() or name.startswith(".") or len(place.parts) > 2):  # no hub name, so nothing to wait for
        raise InputError(f"there is no folder {name}; give one that save_pretrained wrote, or a hub name such as owner/model")
    try:
        return AutoModelForImageTextToText.from_pretrained(name).eval(), AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise InputError(f"transformers loads no image-text-to-text model and processor from {name}: {said}") from error
