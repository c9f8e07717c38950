"""`lightvlm bench peers`: what a user could take instead, and schedules, in one table: the same model, precision and prompt, in turns.

Prefill is the time to the first logits, a step that of one token, alone and after so many more. Torch rows include a tower that costs
nothing; the others are the language model alone.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightvlm_fx.bench import artifact, decode
from lightvlm_fx.bench.prefill import Shape, build, example
from lightvlm_fx.compat import cache_argument
from lightvlm_fx.errors import UnknownName
from lightvlm_fx.explanation import explain
from lightvlm_fx.schedule import Schedule

DTYPES = ("float32", "bfloat16", "int8", "int4")
ENGINES = ("torch", "onnxruntime", "openvino")
GENAI = "takes folders of optimum-intel alone, whose 2.2.0 needs transformers before 5.6"
ROOM = 64  # new tokens that an artifact has room for at least: a turn takes some steps
Run = Callable[[], Any]


@dataclass
class Peer:
    """One row: how to run it, or `missing`, why it is not; and the seconds it took."""

    engine: str
    name: str
    flops: float = 0.0  # of the prefill
    prefill: Run | None = None
    step_at: Callable[[int], Run] | None = None  # a step with so many entries more than the prompt
    missing: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, what: str) -> float:
        return statistics.median(self.seconds[what]) if what in self.seconds else float("nan")


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    shape: Shape
    model: Any  # in the torch rows' precision
    inputs: dict[str, Any]
    dtype: str
    length: int  # new tokens at which a later step is timed
    schedules: dict[str, Schedule]
    home: Path
    tell: Callable[[str], None]

    @property
    def prompt(self) -> int:
        return int(self.inputs["input_ids"].shape[1])

    def flops(self, schedule: str | Schedule = "none") -> float:
        return explain(self.model, schedule, self.inputs).flops


def peers(
    shape: Shape, schedules: dict[str, Schedule], *, dtype: str = "bfloat16", engines: tuple[str, ...] = ENGINES, text: int = 64,
    length: int = 4096, repeats: int = 5, work: Path | None = None, tell: Callable[[str], None] = lambda what: None,
) -> list[Peer]:  # fmt: skip
    """Every peer of `engines` that is installed and has `dtype`, and ours under each of `schedules`. `work`: a folder for exports, which a
    later run with the same shape takes from there.

    Raises UnknownName for an engine or precision that is not known.
    """
    for what, names, known in (("precision", (dtype,), DTYPES), ("engine", engines, ENGINES)):
        for name in names:
            if name not in known:
                raise UnknownName.of(what, name, known)
    of_torch = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = build(shape, "cpu", of_torch)
    inputs = example(model, shape, 1, text, "cpu", of_torch)
    with ExitStack() as stack, torch.inference_mode():
        home = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        home.mkdir(parents=True, exist_ok=True)
        setting = Setting(shape, model, inputs, dtype, length, schedules, home, tell)
        rows = [row for engine in engines for row in MAKERS[engine](setting)]
        for turn in range(repeats + 1):
            tell(f"measuring, turn {turn} of {repeats}")
            for row in rows:
                _measure(row, length, counts=turn > 0)
    return rows


def _measure(row: Peer, length: int, counts: bool) -> None:
    """One turn of a row; the first does not count."""
    if row.prefill is None or row.step_at is None:
        return
    taken = {"prefill": artifact.timed(row.prefill, warm=0, times=1)}
    taken |= {f"step {n}": artifact.timed(row.step_at(n)) for n in (0, length)}
    for what, seconds in taken.items():
        if counts:
            row.seconds.setdefault(what, []).append(seconds)


# --- torch ----------------------------------------------------------------------------------------------


def of_torch(setting: Setting) -> list[Peer]:
    """The eager model and its static cache under torch.compile, both of transformers, and ours by inductor."""
    if setting.dtype in ("int8", "int4"):
        return [Peer("torch", f"weights of {setting.dtype}", missing="quantise the model by torchao and compile that; not a row here")]
    return [_eager(setting), _static(setting), *(_compiled(setting, name, schedule) for name, schedule in setting.schedules.items())]


def _eager(setting: Setting) -> Peer:
    steps = decode.eager(setting.model, setting.prompt, 1, (0, setting.length))
    run = lambda: setting.model(**setting.inputs, use_cache=True, logits_to_keep=1)  # noqa: E731
    return Peer("torch", "transformers, DynamicCache, eager", setting.flops(), run, steps.at)


def _static(setting: Setting) -> Peer:
    from transformers import StaticCache

    setting.tell("compiling the static cache's model")
    steps = decode.static(setting.model, setting.prompt, 1, setting.length, "inductor")
    cache = StaticCache(config=setting.model.config.text_config, max_cache_len=setting.prompt + setting.length)
    compiled, held = torch.compile(setting.model.forward), {cache_argument(setting.model.forward): cache}

    def run() -> Any:
        cache.reset()
        return compiled(**setting.inputs, **held, use_cache=True, logits_to_keep=1)

    return Peer("torch", "transformers, StaticCache, torch.compile", setting.flops(), run, steps.at)


def _compiled(setting: Setting, name: str, schedule: Schedule) -> Peer:
    import lightvlm_fx as lightvlm

    setting.tell(f"compiling {name}")
    fast = lightvlm.compile(setting.model, schedule)
    steps = decode.compiled(fast, name, schedule, setting.inputs, (0, setting.length))
    return Peer("torch", f"ours, {name}", setting.flops(schedule),
                lambda: fast(**setting.inputs, use_cache=True, logits_to_keep=1), steps.at)  # fmt: skip


# --- runtimes of ONNX graphs ----------------------------------------------------------------------------


def of_onnxruntime(setting: Setting) -> list[Peer]:
    """What transformers' exporter writes, and our artifacts."""
    if find_spec("onnxruntime") is None:
        return [Peer("onnxruntime", "all", missing="onnxruntime is not installed")]
    if setting.dtype == "bfloat16":
        return [Peer("onnxruntime", "all", missing="has no bfloat16 kernels on a processor")]
    rows = [_artifact(setting, "onnxruntime", name, schedule) for name, schedule in setting.schedules.items()]
    if setting.dtype != "float32":
        return rows
    theirs = artifact.Theirs(_exported(setting), setting.prompt)
    return [Peer("onnxruntime", "transformers' export", setting.flops(), theirs.prefill, theirs.step_at), *rows]


def of_openvino(setting: Setting) -> list[Peer]:
    """What transformers' exporter writes as OpenVINO converts it, with its cache as OpenVINO's own state, and our artifacts."""
    if find_spec("openvino") is None:
        return [Peer("openvino", "all", missing="openvino is not installed")]
    hint = {"session_options": _hint(setting.dtype)}
    rows = [_artifact(setting, "openvino", name, schedule, **hint) for name, schedule in setting.schedules.items()]
    genai = GENAI if find_spec("openvino_genai") else "openvino-genai is not installed"
    rows.append(Peer("openvino", "OpenVINO GenAI, with and without pruning_ratio", missing=genai))
    if setting.dtype not in ("float32", "bfloat16"):
        return [Peer("openvino", "transformers' export", missing=f"weights of {setting.dtype} by nncf: not a row here"), *rows]
    theirs = Converted(_exported(setting), setting.shape, setting.prompt, setting.dtype)
    return [Peer("openvino", "transformers' export", setting.flops(), theirs.prefill, theirs.step_at), *rows]


MAKERS: dict[str, Callable[[Setting], list[Peer]]] = {"torch": of_torch, "onnxruntime": of_onnxruntime, "openvino": of_openvino}


def _exported(setting: Setting) -> Path:
    """The folder of what transformers' exporter makes of the model, in float32."""
    if not (setting.home / "decode.onnx").exists():
        setting.tell("exporting with transformers")
        model = build(setting.shape, "cpu", torch.float32)
        inputs = {k: v.float() if v.is_floating_point() else v for k, v in setting.inputs.items()}
        with torch.inference_mode(False):
            artifact.export_theirs(model, inputs, setting.home)
    return setting.home


def _artifact(setting: Setting, target: str, name: str, schedule: Schedule, **options: Any) -> Peer:
    from lightvlm_fx.exporting.export import Artifact, export

    weights = "float32" if setting.dtype == "bfloat16" else setting.dtype
    folder = setting.home / f"{target}-{weights}-{schedule.fingerprint}-{setting.prompt}-{setting.length}"
    if not folder.exists():
        setting.tell(f"exporting {name} for {target}")
        with torch.inference_mode(False):
            model = build(setting.shape, "cpu", torch.float32)
            inputs = {k: v.float() if v.is_floating_point() else v for k, v in setting.inputs.items()}
            export(model, schedule, folder, inputs=inputs, prompt_tokens=setting.prompt + 1, new_tokens=max(setting.length, ROOM),
                   target=target, dtype=weights, tell=setting.tell)  # fmt: skip
    from lightvlm_fx.artifact.manifest import read

    ours = artifact.Ours(Artifact(folder, read(folder), 0.0), **options)
    return Peer(target, f"ours, {name}", setting.flops(schedule), ours.prefill, ours.step_at)


def _hint(dtype: str) -> dict[str, str]:
    return {"INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32"}


class Converted:
    """transformers' components on OpenVINO: the language model on a prompt; its decode step, over a cache that OpenVINO keeps."""

    def __init__(self, home: Path, shape: Shape, prompt: int, dtype: str) -> None:
        import openvino
        from openvino.passes import MakeStateful, Manager

        self.runtime, self.shape, self.prompt = openvino, shape, prompt
        core, properties = openvino.Core(), _hint(dtype) | {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        whole, step = (core.read_model(home / f"{name}.onnx") for name in ("language_model", "decode"))
        caches = {port.get_any_name(): [1, shape.kv_heads, -1, shape.hidden // shape.heads] for port in step.inputs if _is_cache(port)}
        step.reshape(caches)
        grown = [port.get_any_name() for port in step.outputs if _is_cache(port)]
        manager = Manager()
        manager.register_pass(MakeStateful(dict(zip(caches, grown, strict=True))))
        manager.run_passes(step)
        self.whole, self.step = (core.compile_model(model, "CPU", properties).create_infer_request() for model in (whole, step))
        self._feed(self.whole, prompt, 0)

    def prefill(self) -> None:
        self.whole.infer()

    def step_at(self, length: int) -> Run:
        """A step with `length` entries after the prompt."""
        past, width = self.prompt + length, self.shape.hidden // self.shape.heads
        for state in self.step.query_state():
            state.state = self.runtime.Tensor(self._drawn(self.shape.kv_heads, past, width))
        self._feed(self.step, 1, past)
        return self.step.infer

    def _feed(self, request: Any, new: int, past: int) -> None:
        for port in request.model_inputs:
            name = port.get_any_name()
            array = {"position_ids": np.arange(past, past + new)[None], "input_ids": np.full((1, new), 10)}.get(name)
            request.set_tensor(port, self.runtime.Tensor(self._drawn(new, self.shape.hidden) if array is None else array))

    def _drawn(self, *sizes: int) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((1, *sizes), np.float32)


def _is_cache(port: Any) -> bool:
    return len(port.partial_shape) == 4


# --- the machine ----------------------------------------------------------------------------------------


def limits(dtype: str) -> tuple[float, float]:
    """What this machine reaches: products in GFLOP/s, in the precision that activations have, and reads of memory in GB/s."""
    side, of = 2048, torch.bfloat16 if dtype == "bfloat16" else torch.float32
    a, b = torch.randn(side, side, dtype=of), torch.randn(side, side, dtype=of)
    large = torch.ones(2**28)  # 1 GiB, more than caches hold

    def best(run: Run) -> float:
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        return min(taken)

    return 2 * side**3 / best(lambda: a @ b) / 1e9, large.nbytes / best(large.sum) / 1e9
