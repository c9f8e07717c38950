"""`lightvlm bench artifact`: an artifact beside the same model as transformers' own exporter writes it, unreduced.

Both run on ONNX Runtime, or the artifact on OpenVINO, in turns. The other side is `OnnxExporter.export_for_generation` of the
model as it is, dynamic in its lengths: its language model on the whole prompt, and its decode step over a cache that grows.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightvlm_fx.artifact.stages import quiet_options
from lightvlm_fx.artifact.targets import TARGETS
from lightvlm_fx.bench.prefill import Shape, build, example
from lightvlm_fx.errors import NotSupported, UnknownName
from lightvlm_fx.explanation import explain
from lightvlm_fx.exporting.export import Artifact, export
from lightvlm_fx.quiet import muted, quiet
from lightvlm_fx.schedule import Schedule

LENGTHS = (64, 1024, 4096)
SPINNING = 0.3  # seconds; ONNX Runtime's threads wait busily after a run, on cores that the other side's next run would need


@dataclass(frozen=True)
class Times:
    """Seconds of one side."""

    prefill: float
    steps: dict[int, float]  # one step with that many entries more than the prompt

    def answer(self, length: int) -> float:
        """Seconds that the steps of an answer take, between the measured lengths by the trapezium rule."""
        at = [n for n in sorted(self.steps) if n <= length]
        return float(np.trapezoid([self.steps[n] for n in at], at))


@dataclass(frozen=True)
class Written:
    """What an export gave, and what it takes to hold it."""

    seconds: float
    peak: float  # resident bytes while exporting, of the weights
    data: int  # bytes of the artifact's weight file
    parity: dict[str, Any] | None  # of the recorded sample, as in the manifest
    resident: float  # unique bytes that a process of its own holds with prefill and decode sessions open, of the language model's weights


@dataclass(frozen=True)
class Compared:
    """Both sides, ours in each precision of weights, and what the arithmetic alone would give."""

    theirs: Times
    ours: dict[str, Times]
    written: dict[str, Written]
    ideal: float  # of the prefill: FLOPs, unreduced through reduced
    weights: int  # bytes of the model


def compare(
    shape: Shape, schedule: Schedule, *, text: int = 64, repeats: int = 5, prepack: bool = False, target: str = "onnxruntime",
    weights: Sequence[str] = ("float32",), tell: Callable[[str], None] = lambda what: None,
) -> Compared:  # fmt: skip
    """Export, once in each precision of `weights`, and measure. `text` tokens around the picture; the prompt fills the bucket. `prepack` as
    in `lightvlm.load`.

    Raises UnknownName for a target that nothing answers with.
    """
    running = [name for name, known in TARGETS.items() if known.runtime]
    if target not in running:
        raise UnknownName.of("target that runs", target, running)
    model = build(shape, "cpu", torch.float32)
    inputs = example(model, shape, 1, text, "cpu", torch.float32)
    size = sum(p.nbytes for p in model.get_decoder().parameters())
    ideal = 1 / explain(model, schedule, inputs).flops_ratio
    with tempfile.TemporaryDirectory() as spare:
        home, peaks, made = Path(spare), {}, dict[str, Artifact]()
        for dtype in dict.fromkeys(weights):
            tell(f"exporting, {dtype}")
            with PeakMemory() as peak:
                made[dtype] = export(model, schedule, home / dtype, inputs=inputs, prompt_tokens=inputs["input_ids"].shape[1] + 1,
                                     new_tokens=max(LENGTHS), target=target, dtype=dtype, tell=tell)  # fmt: skip
            peaks[dtype] = peak.bytes / size
        tell("exporting with transformers")
        export_theirs(model, inputs, home)  # after ours: it leaves traces in the model
        del model
        facts = {}
        for dtype, one in made.items():
            data = (one.path / "model.onnx.data").stat().st_size
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:  # without what the exports left in this one
                resident = fresh.submit(_resident, one, prepack).result()
            facts[dtype] = Written(one.seconds, peaks[dtype], data, one.manifest["parity"], resident / size)
        sides: list[Ours | Theirs] = [Theirs(home, inputs["input_ids"].shape[1]), *(Ours(one, prepack) for one in made.values())]
        tell("measuring")
        prefill = _in_turns([side.prefill for side in sides], repeats, warm=0, times=1)
        steps = {n: _in_turns([side.step_at(n) for side in sides], repeats) for n in (0, *LENGTHS)}
    times = [Times(seconds, {n: steps[n][i] for n in steps}) for i, seconds in enumerate(prefill)]
    return Compared(times[0], dict(zip(made, times[1:], strict=True)), facts, ideal, size)


def _in_turns(runs: list[Callable[[], Any]], repeats: int, **how: int) -> list[float]:
    """Median seconds of each, after one turn that is not counted."""
    turns = [[timed(run, **how) for run in runs] for _ in range(repeats + 1)]
    return [statistics.median(seconds) for seconds in zip(*turns[1:], strict=True)]


class PeakMemory:
    """The most memory this process held inside a `with`, above what it held before."""

    def __enter__(self) -> PeakMemory:
        import threading

        self.start, self.bytes, self.stop = unique_bytes(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.05):
            self.bytes = max(self.bytes, unique_bytes() - self.start)

    def __exit__(self, *args: Any) -> None:
        self.stop.set()
        self.thread.join()


def unique_bytes() -> float:
    """Memory of this process, a page that is mapped twice counted once (PSS)."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _resident(made: Artifact, prepack: bool) -> float:
    """Bytes that an artifact's sessions hold once they have answered."""
    before = unique_bytes()
    ours = Ours(made, prepack)
    for _ in range(3):
        ours.prefill()
        ours.step()
    return unique_bytes() - before


def timed(run: Callable[[], Any], warm: int = 1, times: int = 4) -> float:
    """Seconds of one `run`: the mean of `times`, after a rest and `warm` runs that are not counted."""
    time.sleep(SPINNING)
    for _ in range(warm):
        run()
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


class Ours:
    """The artifact's language model, fed with its recorded sample."""

    def __init__(self, made: Artifact, prepack: bool = False, session_options: Any = None,
                 providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:  # fmt: skip
        self.stages = made.load(verify=False, prepack=prepack, session_options=session_options, providers=providers).stages()
        names = made.manifest["buckets"][0]["samples"]
        sample = {name.removeprefix("inputs."): np.load(made.path / file) for name, file in names.items() if name.startswith("inputs.")}
        self.ids = sample["input_ids"]
        pictures = {name: sample[name] for name in made.manifest["buckets"][0]["arguments"]}
        self.answer: Any = None
        self.given = self.stages.embed(self.ids, sample["attention_mask"], pictures, made.manifest["pad_token_id"])
        self.prefill()

    def prefill(self) -> None:
        from lightvlm_fx.artifact.stages import Generation

        self.answer = None  # first: two caches at once are not what an answer needs
        self.answer = Generation(self.stages, self.given, len(self.ids))

    def step(self) -> None:
        self.answer.step(np.full(len(self.ids), 10))

    def step_at(self, length: int) -> Callable[[], None]:
        """A step; wherever the answer is, as its buffers have one size."""
        return self.step


def export_theirs(model: Any, inputs: dict[str, Any], home: Path, runtime: str = "onnxruntime") -> None:
    """What transformers' exporter for a runtime makes of a model, unreduced: its language model and its decode step, in `home`.

    Raises NotSupported where the installed transformers has no such exporter.
    """
    module, name, suffix, options = {"onnxruntime": ("exporter_onnx", "Onnx", ".onnx", {"opset_version": 23}),
                                     "openvino": ("exporter_openvino", "OpenVINO", ".xml", {})}[runtime]  # fmt: skip
    try:
        found = import_module(f"transformers.exporters.{module}")
        exporter, config = getattr(found, f"{name}Exporter"), getattr(found, f"{name}Config")
        save = exporter.save_program
    except (ImportError, AttributeError) as error:
        raise NotSupported("transformers' own export is compared as transformers 5.23 and later write it, for OpenVINO 5.24; "
                           "install one") from error  # fmt: skip
    home.mkdir(parents=True, exist_ok=True)
    with muted("stdout"), quiet():
        exported = exporter().export_for_generation(model, dict(inputs), config(dynamic=True, **options))
        for part in ("language_model", "decode"):
            save(exported.components[part].program, home / f"{part}{suffix}")


class Theirs:
    """transformers' components: the language model on a prompt, and its decode step. Inputs and outputs are bound."""

    def __init__(self, home: Path, prompt: int) -> None:
        import onnxruntime

        self.runtime, self.prompt = onnxruntime, prompt
        self.model, self.decode = (
            onnxruntime.InferenceSession(str(home / name), quiet_options(onnxruntime), providers=["CPUExecutionProvider"])
            for name in ("language_model.onnx", "decode.onnx")
        )
        self.prefill = self._bound(self.model, prompt, 0)

    def step_at(self, length: int) -> Callable[[], None]:
        """A step with `length` entries after the prompt."""
        return self._bound(self.decode, 1, self.prompt + length)

    def _bound(self, session: Any, new: int, past: int) -> Callable[[], None]:
        random, binding = np.random.default_rng(0), session.io_binding()
        for i in session.get_inputs():
            if i.type == "tensor(int64)":
                array = np.arange(past, past + new)[None] if i.name == "position_ids" else np.full((1, new), 10)
            elif len(i.shape) == 4:  # a cache, which releases of transformers call by different names
                array = random.standard_normal((1, int(i.shape[1]), past, int(i.shape[3])), np.float32)
            else:
                array = random.standard_normal((1, new, int(i.shape[-1])), np.float32)
            binding.bind_ortvalue_input(i.name, self.runtime.OrtValue.ortvalue_from_numpy(array))
        for o in session.get_outputs():
            shape = [1, new, o.shape[-1]] if len(o.shape) == 3 else [1, o.shape[1], past + new, o.shape[3]]
            binding.bind_ortvalue_output(o.name, self.runtime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32))
        return lambda: session.run_with_iobinding(binding)
