"""`lightvlm.export`: a model and a schedule to a folder that runs without either's Python."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    import onnx_ir  # noqa: F401  (of the exporters, which a target names)
except ImportError as error:
    raise ImportError("lightvlm.export needs onnx, onnx-ir and onnxscript: pip install 'lightvlm-fx[onnx]', or [onnx-cpu]") from error

from lightvlm_fx.artifact.manifest import MANIFEST, SCHEMA_VERSION, digest
from lightvlm_fx.artifact.sampling import whole
from lightvlm_fx.artifact.schema import LOOSEST
from lightvlm_fx.artifact.targets import TARGETS
from lightvlm_fx.compat import own_configs
from lightvlm_fx.errors import CaptureError, InputError, UnknownName
from lightvlm_fx.exporters.base import Exporter
from lightvlm_fx.exporters.folder import written_aside
from lightvlm_fx.exporters.precision import DTYPES, cast
from lightvlm_fx.exporting.build import Built, build
from lightvlm_fx.model.layout import Placeholders
from lightvlm_fx.model.locate import check_supported, decoder_path
from lightvlm_fx.model.whole import refuse_parts
from lightvlm_fx.releases import warn_of_untested
from lightvlm_fx.schedule import Schedule, as_schedule
from lightvlm_fx.version import __version__

PROVIDERS = ("cpu", "cuda", "tensorrt")
PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "numpy")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Artifact:
    """What an export wrote: its folder, and the manifest that stands there."""

    path: Path
    manifest: dict[str, Any]
    seconds: float

    def load(self, **options: Any) -> Any:
        """`lightvlm.load` of this folder."""
        from lightvlm_fx.artifact.load import load

        return load(self.path, **options)


def export(
    model: Any,
    schedule: Schedule | str | Path,
    out: str | Path,
    *,
    target: str = "onnxruntime",
    inputs: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
    processor: Any = None,
    prompt_tokens: int | Sequence[int] | None = None,
    images: int | None = None,
    new_tokens: int = 256,
    dtype: str = "float32",
    provider: str = "cpu",
    aot_inductor: bool = False,
    tell: Tell = lambda line: None,
) -> Artifact:
    """Write the stages of `model` under `schedule`, with their one weight file, to the folder `out`.

    `inputs` is an example batch (a processor's output, left-padded rows), or several: each makes a bucket, which takes as
    many rows, and pictures of any size as long as a row has no more visual tokens than the example's. Without, `processor`
    makes one from a picture of the size it prefers. `prompt_tokens` is how long a prompt may get, with its visual tokens
    (default: 64 tokens of text more than the example), `images` how many pictures a row may have (default: 4, or the
    example's where it has more), `new_tokens` how long an answer may get where the schedule does not bound the cache. `dtype` is one of
    float32, float16, bfloat16 (not for target openvino), int8 (not for torch-export) and int4 (neither for torch-export nor tensorrt);
    the last two are of the decoder's weights, and ONNX Runtime rounds activations to 8 bits in their products. With `aot_inductor`, the
    target torch-export also holds each stage compiled for this machine.
    The model is left as it was, and `out` appears whole or not at all.

    Raises InputError, ScheduleError, RefusedModel or CaptureError, with the reason.
    """
    start = time.perf_counter()
    warn_of_untested()
    schedule = as_schedule(schedule)
    for what, name, known in (("target", target, TARGETS), ("precision", dtype, DTYPES), ("provider", provider, PROVIDERS)):
        if name not in known:
            raise UnknownName.of(what, name, known)
    chosen = TARGETS[target]
    if dtype in chosen.instead:
        raise InputError(f"target {target!r} has no {dtype}: {chosen.instead[dtype]}")
    new_tokens = whole("new_tokens", new_tokens, 1)
    images = None if images is None else whole("images", images, 1)
    if aot_inductor and not chosen.compiles:
        compiled = " or ".join(repr(name) for name, known in TARGETS.items() if known.compiles)
        raise InputError(f"aot_inductor compiles the stages of target={compiled}, not of {target!r}")
    check_supported(model)
    refuse_parts(model, decoder_path(model))
    examples = _examples(inputs, processor)
    lengths = _lengths(prompt_tokens, examples)
    exported = own_configs(cast(model, dtype))  # towers are run and traced with settings of their own; other threads may run the model
    with written_aside(Path(out)) as folder:
        exporter = chosen.writes_with()(chosen, folder, dtype, aot_inductor)
        buckets = []
        for number, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            tell(f"bucket {number}: capturing and rewriting, {length} tokens")
            example = {k: v.to(exported.dtype) if v.is_floating_point() else v for k, v in example.items()}
            make = partial(build, exported, schedule, example, length, new_tokens, images=images, static=not chosen.any_length,
                           blocks=chosen.any_length and provider == "cpu")  # fmt: skip
            write = partial(_write_bucket, exporter, number, tell=tell)
            buckets.append(_of_any_length(make, write, tell) if chosen.any_length else write(make()))
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        manifest = _manifest(model, schedule, target, dtype, provider, buckets)
        manifest |= exporter.finish(buckets)
        tell("checking the graphs, and measuring parity")
        manifest["files"] = _hashes(folder)
        _refuse_problems(folder, manifest)
        record_parity(folder, manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return Artifact(Path(out), manifest, time.perf_counter() - start)


def _of_any_length(make: Callable[..., Built], write: Callable[..., dict[str, Any]], tell: Tell) -> dict[str, Any]:
    """A bucket for prompts of every length up to its own; of that length alone where torch.export takes its code for no other.

    Which it is, and why, says the manifest.
    """
    built = make(any_length=True)
    if built.lengths is None:
        return write(built) | {"lengths_why": "the model's code, or the fewest tokens that the schedule's methods look at, fix the length"}
    try:
        return write(built)
    except CaptureError as error:
        tell(f"again, every prompt padded to {built.bounds.length} tokens: {error}")
        return write(make()) | {"lengths_why": str(error)}


def _examples(inputs: Any, processor: Any) -> list[dict[str, Tensor]]:
    if inputs is None:
        if processor is None:
            raise InputError("export needs inputs=, an example batch, or processor=, to make one: they fix the sizes of pictures")
        from lightvlm_fx.exporting.example import example

        inputs = example(processor)
    several = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    if not several:
        raise InputError("inputs= is empty: an artifact needs an example batch for each of its buckets")
    out = []
    for batch in several:
        tensors = {k: torch.as_tensor(v) for k, v in dict(batch).items()}
        moving = sorted(name for name in tensors if "video" in name)
        if moving:
            raise InputError(f"the example holds a video ({', '.join(moving)}); an artifact takes still pictures: make the example of one")
        for name in ("input_ids", "pixel_values"):
            if name not in tensors:
                raise InputError(f"an example batch needs {name}, got {sorted(tensors)}; pass all that the processor returned")
        out.append(tensors)
    return out


def _lengths(prompt_tokens: int | Sequence[int] | None, examples: list[dict[str, Tensor]]) -> list[int]:
    have = [e["input_ids"].shape[1] for e in examples]
    given: Any = [n + 64 for n in have] if prompt_tokens is None else prompt_tokens
    given = list(given) if isinstance(given, list | tuple) else [given] * len(have)
    wanted = [whole("prompt_tokens", n, 1) for n in given]
    if len(wanted) != len(have):
        raise InputError(f"{len(wanted)} prompt lengths for {len(have)} example batches; give one each, or one for all")
    for n, least in zip(wanted, have, strict=True):
        if n <= least:
            raise InputError(f"prompt_tokens={n} must be above the example's {least} tokens")
    return wanted


def _write_bucket(exporter: Exporter, number: int, built: Built, tell: Tell) -> dict[str, Any]:
    """The files of one bucket, and what the manifest says of them."""
    stages: dict[str, Any] = {}
    for name, stage in built.stages.items():
        tell(f"bucket {number}: writing {name}")
        stages[name] = exporter.write(name, f".{number}" if number else "", stage)
    folder = exporter.folder
    bucket, bounds, tables = built.bucket, built.bounds, built.tables
    samples = _write_samples(folder, number, built, with_stages=not exporter.target.runtime)
    return {
        "lengths": _write_lengths(folder, number, built),
        "rows": bounds.rows, "prompt_tokens": bounds.length, "text_tokens": bounds.text, "visual_tokens": bounds.visual,
        "pictures": bounds.pictures, "least_picture": tables.least_picture, "least_tokens": tables.least_row,
        "new_tokens": built.new_tokens, "compact_every": built.period, "vision": built.vision, "grid": built.grid,
        "arguments": sorted(bucket.pictures), "example": [list(row) for row in bucket.images], "tokens_per_layer": list(built.tokens),
        "cache_slots": list(built.capacity), "stages": stages, "samples": samples,
        "passes": {stage: [str(step) for step in steps] for stage, steps in built.steps.items()},
    }  # fmt: skip


def _write_lengths(folder: Path, number: int, built: Built) -> dict[str, Any] | None:
    """The tables by which a runner knows how long sequences are, as plain .npy files; None where all prompts are padded alike."""
    if built.lengths is None:
        return None
    (folder / "tables").mkdir(exist_ok=True)
    said = built.lengths.entry()
    for name in ("kept", "reach"):
        said[name] = None if (table := getattr(built.lengths, name)) is None else f"tables/{number}.{name}.npy"
        if table is not None:
            np.save(folder / said[name], table, allow_pickle=False)
    return said


def _write_samples(folder: Path, number: int, built: Built, with_stages: bool) -> dict[str, Any]:
    """The example batch with the compiled model's answer, and its logits at the end of the prompt, for `verify`; plain .npy files.

    `with_stages`: also what the runner works out of a batch, `vision.*` and `prefill.picture_*`, for a target that has no runner.
    """
    home = folder / "samples"
    home.mkdir(exist_ok=True)
    end = built.bucket.length + built.new_tokens if built.new_tokens else None
    arrays = {f"inputs.{k}": v for k, v in built.bucket.inputs.items()}
    arrays |= {"logits": built.bucket.logits[0].float(), "sequences": built.bucket.sequences[:, :end]}
    if with_stages:
        arrays |= {f"vision.{name}": x for name, x in built.stages["vision"].inputs.items()}
        arrays |= {f"prefill.{name}": x for name, x in built.stages["prefill"].inputs.items() if name.startswith("picture_")}
    files = {}
    for name, x in arrays.items():
        x = x.float() if x.dtype == torch.bfloat16 else x
        np.save(home / f"{number}.{name}.npy", x.detach().cpu().numpy(), allow_pickle=False)
        files[name] = f"samples/{number}.{name}.npy"
    return files


def _manifest(model: Any, schedule: Schedule, target: str, dtype: str, provider: str, buckets: list[dict[str, Any]]) -> dict[str, Any]:
    generation = model.generation_config
    eos = generation.eos_token_id
    pad = generation.pad_token_id
    marks = Placeholders.of(model)
    vocabulary = next(v["shape"][1] for v in buckets[0]["stages"]["prefill"]["outputs"] if v["name"] == "logits")
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    eos = [token for token in eos if 0 <= token < vocabulary]  # what a model cannot say ends nothing
    return {
        "schema_version": SCHEMA_VERSION, "lightvlm_fx": __version__, "target": target, "provider": provider, "dtype": dtype,
        "architecture": type(model).__name__, "model_type": model.config.model_type,
        "schedule": schedule.model_dump(mode="json"), "fingerprint": schedule.fingerprint,
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "placeholders": {"ids": list(marks.ids), "per_image": marks.per_image, "ends_last_row": marks.ends_last_row},
        "eos_token_id": eos, "pad_token_id": eos[0] if pad is None and eos else pad or 0,
        "buckets": buckets,
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _refuse_problems(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise CaptureError with what `verify` would say of the graphs."""
    from lightvlm_fx.artifact.lint import lint

    wrong, _ = lint(folder, manifest, ["CPUExecutionProvider"])
    if wrong:
        raise CaptureError("\n".join([*wrong[:5], "a defect of lightvlm_fx, or a runtime of another release than it knows"]))


def record_parity(folder: Path, manifest: dict[str, Any]) -> None:
    """Run the recorded samples on the target's runtime where it is installed, and note the difference; in float32 there must be none."""
    from lightvlm_fx.artifact.verify import TOLERANCE, parity

    target = TARGETS[manifest["target"]]
    if not target.runtime or _version(target.runtime) is None or manifest["dtype"] == "bfloat16":
        manifest["parity"] = None
        return
    found = manifest["parity"] = parity(folder, manifest)
    if manifest["dtype"] == "float32" and not (found["logits"] <= TOLERANCE["float32"] and found["tokens_equal"]):
        tokens = "equal to" if found["tokens_equal"] else "other than"
        raise CaptureError(
            f"on {target.title} the greedy tokens are {tokens} the compiled model's on the example, the logits "
            f"{found['logits']:.1e} of the largest apart (bound {TOLERANCE['float32']:.0e}): a defect of lightvlm_fx or of a kernel"
        )
    if not found["logits"] <= LOOSEST[manifest["dtype"]]:
        raise CaptureError(
            f"on {target.title} the logits are {found['logits']:.1e} of the largest apart from the compiled model's on the example, where "
            f"rounding to {manifest['dtype']} explains at most {LOOSEST[manifest['dtype']]}: they overflow, or it is a defect of "
            "lightvlm_fx or of a kernel; export with dtype='float32'"
        )


def _hashes(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    out = {}
    for file in files:
        out[file.relative_to(folder).as_posix()] = {"sha256": digest(file), "bytes": file.stat().st_size}
    return out
