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
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightvlm_fx.bench import artifact, decode
from lightvlm_fx.bench.prefill import Shape, build, example
from lightvlm_fx.errors import UnknownName
from lightvlm_fx.explanation import explain
from lightvlm_fx.schedule import Schedule

# A precision, and what activations of torch have in it: of weights of 4 bits its float32 product computes one number at a time.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32, "int4": torch.bfloat16}
ENGINES = ("torch", "onnxruntime", "openvino")
GENAI = "takes folders of optimum-intel alone, whose 2.2.0 needs transformers before 5.6"
OPTIMUM = ("not in WORK/optimum: in an environment of its own (transformers before 5.6), optimum-cli export openvino --model WORK/decoder "
           "--task text-generation-with-past WORK/optimum; WORK is the folder of --work")  # fmt: skip
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
    model = build(shape, "cpu", DTYPES[dtype])
    inputs = example(model, shape, 1, text, "cpu", DTYPES[dtype])
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
    """The eager model and its static cache under torch.compile, both of transformers, and ours by inductor, also with packed weights.

    int8 and int4 are torchao's weights in the decoder, beside the same model without.
    """
    if setting.dtype in ("int8", "int4"):
        if find_spec("torchao") is None:
            return [Peer("torch", f"weights of {setting.dtype}", missing="torchao is not installed")]
        real, own = DTYPES[setting.dtype], setting.schedules.items()
        plain = [_compiled(setting, f"{name}, {str(real).removeprefix('torch.')} weights", schedule) for name, schedule in own]
        setting = replace(setting, model=build(setting.shape, "cpu", real))
        _quantise(setting.model.get_decoder(), setting.dtype)
        return [_eager(setting), *plain, *(_compiled(setting, *named) for named in own)]
    ours = [_compiled(setting, *named, packed) for packed in (False, True) for named in setting.schedules.items()]
    return [_eager(setting), _static(setting), *ours]


def _quantise(decoder: Any, dtype: str) -> None:
    """Replace the weights of linear layers by torchao's, in place."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    if dtype == "int8":
        quantize_(decoder, Int8WeightOnlyConfig(set_inductor_config=False))
    else:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        quantize_(decoder, PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False))


def _eager(setting: Setting) -> Peer:
    steps = decode.eager(setting.model, setting.prompt, 1, (0, setting.length))
    run = lambda: setting.model(**setting.inputs, use_cache=True, logits_to_keep=1)  # noqa: E731
    return Peer("torch", "transformers, DynamicCache, eager", setting.flops(), run, steps.at)


def _static(setting: Setting) -> Peer:
    from transformers import StaticCache

    setting.tell("compiling the static cache's model")
    steps = decode.static(setting.model, setting.prompt, 1, setting.length, "inductor")
    cache = StaticCache(config=setting.model.config.text_config, max_cache_len=setting.prompt + ROOM)  # attention reads all of it
    compiled, held = torch.compile(setting.model.forward), decode.with_entries(setting.model, cache)

    def run() -> Any:
        cache.reset()
        return compiled(**setting.inputs, **held, logits_to_keep=1)

    return Peer("torch", "transformers, StaticCache, torch.compile", setting.flops(), run, steps.at)


def _compiled(setting: Setting, name: str, schedule: Schedule, packed: bool = False) -> Peer:
    import lightvlm_fx as lightvlm

    name += ", packed" * packed
    setting.tell(f"compiling {name}")
    fast = lightvlm.compile(setting.model, schedule, prepack=packed)
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
    rows = _artifacts(setting, "onnxruntime")
    if setting.dtype != "float32":
        return rows
    theirs = artifact.Theirs(_exported(setting), setting.prompt)
    return [Peer("onnxruntime", "transformers' export", setting.flops(), theirs.prefill, theirs.step_at), *rows]


def of_openvino(setting: Setting) -> list[Peer]:
    """What transformers' exporter for OpenVINO writes, with its cache as OpenVINO's own state, and our artifacts."""
    if find_spec("openvino") is None:
        return [Peer("openvino", "all", missing="openvino is not installed")]
    rows = _artifacts(setting, "openvino", session_options=_hint(setting.dtype))
    genai = GENAI if find_spec("openvino_genai") else "openvino-genai is not installed"
    rows.append(Peer("openvino", "OpenVINO GenAI, with and without pruning_ratio", missing=genai))
    return [*_theirs_on_openvino(setting), *rows]


def _theirs_on_openvino(setting: Setting) -> list[Peer]:
    if setting.dtype not in ("float32", "bfloat16"):
        return [Peer("openvino", "transformers' export", missing=f"weights of {setting.dtype} by nncf: not a row here")]
    home = setting.home / "openvino"
    if not (home / "decode.xml").exists():
        setting.tell("exporting with transformers for OpenVINO")
        with torch.inference_mode(False):
            artifact.export_theirs(*_in_float32(setting), home, "openvino")
    theirs = Stateful(home / "language_model.xml", home / "decode.xml", setting)
    return [Peer("openvino", "transformers' export", setting.flops(), theirs.prefill, theirs.step_at), _of_optimum(setting)]


def _of_optimum(setting: Setting) -> Peer:
    """What optimum-intel made of the decoder, which cannot be installed beside today's transformers: its folder, or what to do for one."""
    from transformers import AutoModelForCausalLM

    name, made, decoder = "optimum-intel's export", setting.home / "optimum" / "openvino_model.xml", setting.home / "decoder"
    if not made.exists():
        if not decoder.exists():
            AutoModelForCausalLM.from_config(setting.model.config.text_config, dtype=torch.float32).save_pretrained(decoder)
        return Peer("openvino", name, missing=OPTIMUM)
    both = Stateful(made, made, setting)
    return Peer("openvino", name, setting.flops(), both.prefill, both.step_at)


MAKERS: dict[str, Callable[[Setting], list[Peer]]] = {"torch": of_torch, "onnxruntime": of_onnxruntime, "openvino": of_openvino}


def _exported(setting: Setting) -> Path:
    """The folder of what transformers' exporter makes of the model, in float32."""
    if not (setting.home / "decode.onnx").exists():
        setting.tell("exporting with transformers")
        with torch.inference_mode(False):
            artifact.export_theirs(*_in_float32(setting), setting.home)
    return setting.home


def _in_float32(setting: Setting) -> tuple[Any, dict[str, Any]]:
    """The model and its inputs, as exporters take them."""
    inputs = {name: x.float() if x.is_floating_point() else x for name, x in setting.inputs.items()}
    return build(setting.shape, "cpu", torch.float32), inputs


def _artifacts(setting: Setting, target: str, **options: Any) -> list[Peer]:
    """Ours under each schedule; of weights in whole numbers beside the same in float32."""
    plain = {", float32 weights": replace(setting, dtype="float32")} if setting.dtype in ("int8", "int4") else {}
    return [_artifact(made, target, name + said, schedule, **options) for said, made in (*plain.items(), ("", setting))
            for name, schedule in setting.schedules.items()]  # fmt: skip


def _artifact(setting: Setting, target: str, name: str, schedule: Schedule, **options: Any) -> Peer:
    from lightvlm_fx.exporting.export import Artifact, export

    weights = "float32" if setting.dtype == "bfloat16" else setting.dtype
    folder = setting.home / f"{target}-{weights}-{schedule.fingerprint}-{setting.prompt}-{setting.length}"
    if not folder.exists():
        setting.tell(f"exporting {name} for {target}")
        with torch.inference_mode(False):
            model, inputs = _in_float32(setting)
            export(model, schedule, folder, inputs=inputs, prompt_tokens=setting.prompt + 1, new_tokens=max(setting.length, ROOM),
                   target=target, dtype=weights, tell=setting.tell)  # fmt: skip
    from lightvlm_fx.artifact.manifest import read

    ours = artifact.Ours(Artifact(folder, read(folder), 0.0), **options)
    return Peer(target, f"ours, {name}", setting.flops(schedule), ours.prefill, ours.step_at)


def _hint(dtype: str) -> dict[str, str]:
    return {"INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32"}


class Stateful:
    """A language model on OpenVINO, its cache OpenVINO's own state: `whole` on a prompt, and `step` after it. Both may be one file."""

    def __init__(self, whole: Path, step: Path, setting: Setting) -> None:
        import openvino

        hint = _hint(setting.dtype)
        properties = hint | {"KV_CACHE_PRECISION": hint["INFERENCE_PRECISION_HINT"], "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        core, self.runtime, self.setting = openvino.Core(), openvino, setting
        self.whole, self.step = (core.compile_model(path, "CPU", properties).create_infer_request() for path in (whole, step))
        self._feed(self.whole, setting.prompt, 0)

    def prefill(self) -> None:
        self.whole.reset_state()
        self.whole.infer()

    def step_at(self, length: int) -> Run:
        """A step with `length` entries after the prompt."""
        shape, past = self.setting.shape, self.setting.prompt + length
        for state in self.step.query_state():
            state.state = self._drawn(shape.kv_heads, past, shape.hidden // shape.heads)
        self._feed(self.step, 1, past)
        return self.step.infer

    def _feed(self, request: Any, new: int, past: int) -> None:
        arrays = {"position_ids": np.arange(past, past + new)[None], "input_ids": np.full((1, new), 10),
                  "attention_mask": np.ones((1, past + new), np.int64), "beam_idx": np.zeros(1, np.int32)}  # fmt: skip
        for port in request.model_inputs:
            name = port.get_any_name()
            request.set_tensor(port, self.runtime.Tensor(arrays[name]) if name in arrays else self._drawn(new, self.setting.shape.hidden))

    def _drawn(self, *sizes: int) -> Any:
        return self.runtime.Tensor(np.random.default_rng(0).standard_normal((1, *sizes), np.float32))


# --- the machine ----------------------------------------------------------------------------------------


def limits(dtype: str) -> tuple[float, float]:
    """What this machine reaches: products in GFLOP/s, in the precision of activations, and reads of memory in GB/s."""
    side = 2048
    a, b = (torch.randn(side, side, dtype=DTYPES[dtype]) for _ in "ab")
    large = torch.ones(2**28)  # 1 GiB, more than caches hold

    def best(run: Run) -> float:
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        return min(taken)

    return 2 * side**3 / best(lambda: a @ b) / 1e9, large.nbytes / best(large.sum) / 1e9
