"""The parts of `lightvlm bench gpu`: checks of one device, and tables at real decoder shapes.

Each part is a function of a Kit that returns its tables and what is wrong. On a processor they run as they do on a GPU, at a
tiny shape; what only a GPU has (CUDA graphs, waiting for a device) is then none or is told by `bench.reads`.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.bench import prefill as bench
from lightvlm_fx.bench.decode import decode, with_entries
from lightvlm_fx.bench.prefill import Shape, build, example, synchronise
from lightvlm_fx.bench.reads import watched
from lightvlm_fx.compat import given_cache, skipped_cuda_graphs
from lightvlm_fx.exporters.torch_compile import compiled_graphs
from lightvlm_fx.graph.program import value
from lightvlm_fx.schedule import Schedule

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "gemma3")
SHAPES = ("qwen2.5-vl-7b", "internvl2.5-8b", "internvl2.5-26b")
SHARE = 0.6  # of the device's free memory that weights may take; the rest is for caches, copies and what compiling needs
SAME = 1e-3  # logits of float32 on two devices may differ by so much of the largest one
ROUNDED = 0.05  # and those of bfloat16 in two graphs


@dataclass(frozen=True)
class Kit:
    """What to run on: a device, decoder shapes of the tables, and how."""

    device: str = "cuda"
    shapes: tuple[str, ...] = SHAPES
    families: tuple[str, ...] = FAMILIES
    layers: int | None = None  # decoder layers of the shapes, None: all that fit
    graph_layers: int = 8  # of the shape that is compiled in one piece, where layers are not compiled once for all
    backend: str = "inductor"
    dtype: str = "bfloat16"
    repeats: int = 5
    lengths: tuple[int, ...] = (64, 1024)  # new tokens after which steps are timed
    capacity: int = 512

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Table:
    """Cells as text, ready to print."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """What a part measured, and what is wrong; `skipped` says why nothing was measured."""

    tables: list[Table] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    skipped: str = ""


@contextmanager
def case(wrong: list[str], what: str) -> Iterator[None]:
    """One case of a part: what it raises is noted, and the others go on."""
    try:
        yield
    except Exception as error:  # reported, and the exit code tells
        where = traceback.extract_tb(error.__traceback__)[-1]
        wrong.append(f"{what}: {type(error).__name__} in {where.name} ({Path(where.filename).name}:{where.lineno}): {str(error)[:500]}")


def small(capacity: int = 40) -> dict[str, Schedule]:
    """Schedules for tiny models of four layers and 16 to 64 visual tokens."""
    return {
        "none": Schedule.preset("none"),
        "lightvlm 0.35": Schedule.preset("lightvlm", keep=0.35),
        "lightvlm 0.1": Schedule.preset("lightvlm", keep=0.1),
        f"lightvlm 0.5, capacity {capacity}": Schedule.preset("lightvlm", keep=0.5, capacity=capacity),
    }


def large(capacity: int) -> dict[str, Schedule]:
    """Schedules of the tables, but for `none`."""
    return {
        "lightvlm 0.35": Schedule.preset("lightvlm", keep=0.35),
        "lightvlm 0.03": Schedule.preset("lightvlm", keep=0.03),
        f"lightvlm 0.35, capacity {capacity}": Schedule.preset("lightvlm", keep=0.35, capacity=capacity),
    }


# --- checks ---------------------------------------------------------------------------------------------


def placement(kit: Kit, schedules: dict[str, Schedule] | None = None) -> Found:
    """Tiny models of every kind: everything is on the device, and prompts and dialogues are answered as on the processor."""
    table = Table("placement, tiny models, eager",
                  ("family", "schedule", "tensors", "on another device", "logits differ by", "same tokens"))  # fmt: skip
    wrong: list[str] = []
    for family in kit.families:
        tiny = zoo.build(family)
        sources = {device: copy.deepcopy(tiny.model).to(device) for device in ("cpu", kit.device)}
        fasts = {device: lightvlm.compile(source, "none", backend="eager") for device, source in sources.items()}
        for name, schedule in (small() if schedules is None else schedules).items():
            with case(wrong, f"{family}, {name}"):
                inputs = tiny.inputs(text=(9, 6), images=(1, 1))
                here, there = (_dialogue(fasts[device].lightvlm.with_schedule(schedule), inputs, device) for device in ("cpu", kit.device))
                off = [what for what, x in there.tensors if x.device.type != torch.device(kit.device).type]
                differ = max(_apart(x, y) for x, y in zip(here.logits, there.logits, strict=True))
                same = here.tokens.equal(there.tokens.cpu())
                table.rows.append((family, name, str(len(there.tensors)), str(len(off)), f"{differ:.1e}", "yes" if same else "no"))
                if off:
                    wrong.append(f"{family}, {name}: not on {kit.device}: {', '.join(off[:8])}")
                if not differ <= SAME:
                    wrong.append(f"{family}, {name}: logits differ from the processor's by {differ:.1e} of the largest, above {SAME}")
    return Found([table], wrong)


@dataclass(frozen=True)
class _Answered:
    tokens: Tensor
    logits: list[Tensor]
    tensors: list[tuple[str, Tensor]]


def _dialogue(fast: Any, inputs: dict[str, Tensor], device: str) -> _Answered:
    """A batch of two rows, answered, and three tokens more put after the answer at once."""
    seen: list[tuple[str, Tensor]] = []
    inputs = {name: x.to(device) for name, x in inputs.items()}
    told = fast.lightvlm.recording(lambda stage, given: seen.extend((f"{stage} {name}", x) for name, x in tensors(given)))
    with torch.no_grad(), told:
        out = fast.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
        cache = given_cache(out)
        more = fast(input_ids=torch.full((2, 3), 30, device=device), **with_entries(fast, cache))
    return _Answered(out.sequences, [out.logits[0].cpu(), more.logits.cpu()], [*seen, *held(fast, cache)])


def held(fast: Any, cache: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a compiled model and its cache hold, and the value of every node of its graphs."""
    yield from tensors(cache.layers, "cache")
    yield from tensors(cache.layers[0].state.inputs(1), "step")
    yield from tensors(fast.lightvlm.survivors, "survivors")
    for entry in fast.lightvlm._decoder.graphs.entries.values():
        program = entry.program
        for node in program.graph.nodes:
            found = getattr(program.graph_module, node.target) if node.op == "get_attr" else value(node)
            yield from tensors(found, f"{program.stage} graph, %{node.name}")


def tensors(thing: Any, name: str = "", known: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside of lists, dictionaries and the objects that hold a cache, by the way that leads there."""
    known = set() if known is None else known
    if id(thing) in known:
        return
    if isinstance(thing, Tensor):
        yield name, thing
        return
    if isinstance(thing, dict):
        inside = {str(key): x for key, x in thing.items()}
    elif isinstance(thing, list | tuple):
        inside = {str(i): x for i, x in enumerate(thing)}
    elif type(thing).__module__ in ("lightvlm_fx.runtime.cache", "lightvlm_fx.runtime.kv_plan"):
        inside = vars(thing)
    else:
        return
    known.add(id(thing))
    for key, x in inside.items():
        yield from tensors(x, f"{name}.{key}" if name else key, known)


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((a.float() - b.float()).abs().max() / a.float().abs().max()).item()


def steps(kit: Kit) -> Found:
    """Tiny models, compiled: after two prompts nothing is compiled for others, and a step reads nothing on the host."""
    table = Table(f"steps, tiny models, {kit.backend}",
                  ("family", "schedule", "graphs of two prompts", "graphs of four more", "host reads"))  # fmt: skip
    wrong: list[str] = []
    cases = [("llava", name, schedule) for name, schedule in small().items()]
    cases += [("qwen2_5_vl", name, schedule) for name, schedule in list(small().items())[1:2]]
    cases += [("llava", name, Schedule.preset(name, capacity=40)) for name in ("h2o", "streaming-llm")]
    for family, name, schedule in cases:
        with case(wrong, f"{family}, {name}"):
            first, more, reads = _stepped(family, schedule, kit)
            table.rows.append((family, name, str(first), str(more), reads or "none"))
            if more:
                wrong.append(f"{family}, {name}: {more} graphs were compiled for prompts of other sizes")
            if reads:
                wrong.append(f"{family}, {name}: a step waits for the device: {reads}")
    return Found([table], wrong)


def _stepped(family: str, schedule: Schedule, kit: Kit) -> tuple[int, int, str]:
    """Graphs that two prompts compile and that four others do, and what steps read on the host."""
    tiny = zoo.build(family)
    fast = lightvlm.compile(tiny.model.to(kit.device), schedule, backend=kit.backend)

    def prompt(text: int, images: int) -> dict[str, Tensor]:
        return {name: x.to(kit.device) for name, x in tiny.inputs(text=(text,), images=(images,)).items()}

    def graphs(*prompts: tuple[int, int]) -> int:
        before = compiled_graphs()
        for text, images in prompts:
            fast.generate(**prompt(text, images), max_new_tokens=6, min_new_tokens=6, do_sample=False)
        return compiled_graphs() - before

    return graphs((9, 1), (14, 2)), graphs((11, 1), (23, 1), (8, 3), (40, 2)), _host_reads(fast, prompt(9, 1), kit.device)


def _host_reads(fast: Any, inputs: dict[str, Tensor], device: str, count: int = 4) -> str:
    """What `count` steps after a prompt read on the host: operators, or what CUDA says of the first wait."""
    token = torch.full((len(inputs["input_ids"]), 1), 30, device=device)
    with torch.no_grad():
        given = with_entries(fast, given_cache(fast(**inputs, use_cache=True)))
        for _ in range(2):  # buffers grow, graphs are opened
            fast(input_ids=token, **given)
        try:
            with watched(device) as found:
                for _ in range(count):
                    fast(input_ids=token, **given)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return str(error).splitlines()[0]
    return ", ".join(found)


def cuda_graphs(kit: Kit) -> Found:
    """One shape under `static=True, mode="reduce-overhead"` beside the default, prefill and step, and two dialogues in turns."""
    shape = _cut_down(kit, kit.shapes[0], kit.graph_layers)
    dtype = getattr(torch, kit.dtype)
    model = build(shape, kit.device, dtype)
    inputs = example(model, shape, 1, 64, kit.device, dtype)
    table = Table(f"CUDA graphs, {shape}, 64 text tokens, {kit.dtype}",
                  ("schedule", "prefill ms", "with CUDA graphs", "step ms", "with CUDA graphs", "first s", "skipped",
                   "logits differ by"))  # fmt: skip
    wrong: list[str] = []
    for name, schedule in ({"none": Schedule.preset("none")} | large(kit.capacity)).items():
        before, start = skipped_cuda_graphs(), time.perf_counter()
        plain = lightvlm.compile(model, schedule, backend=kit.backend)
        options = {"mode": "reduce-overhead"} if kit.backend == "inductor" else {}
        fast = lightvlm.compile(model, schedule, backend=kit.backend, static=True, **options)
        with torch.no_grad():
            expected, got = (_in_turns(x, inputs) for x in (plain, fast))
            first = time.perf_counter() - start
            times = [_times(x, inputs, kit) for x in (plain, fast)]
        differ, skipped = max(_apart(x, y) for x, y in zip(expected, got, strict=True)), skipped_cuda_graphs() - before
        ms = [f"{1e3 * seconds:.2f}" for pair in zip(*times, strict=True) for seconds in pair]
        table.rows.append((name, *ms, f"{first:.0f}", str(skipped), f"{differ:.1e}"))
        if skipped:
            wrong.append(f"{name}: inductor skipped CUDA graphs {skipped} times")
        if not differ <= ROUNDED:
            wrong.append(f"{name}: logits differ from those without CUDA graphs by {differ:.1e} of the largest, above {ROUNDED}")
    return Found([table], wrong)


def _in_turns(fast: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Logits of two prompts, both asked before either goes on, and of three steps of each, in turns."""
    token = torch.full((1, 1), 10, device=inputs["input_ids"].device)
    other = inputs | {"input_ids": torch.where(inputs["input_ids"] == 10, 11, inputs["input_ids"])}
    logits, caches = [], []
    for given in (inputs, other):
        out = fast(**given, use_cache=True, logits_to_keep=1)
        logits.append(out.logits.clone())
        caches.append(given_cache(out))
    for _ in range(3):
        logits += [fast(input_ids=token, **with_entries(fast, cache)).logits.clone() for cache in caches]
    return logits


def _times(fast: Any, inputs: dict[str, Tensor], kit: Kit, count: int = 8) -> tuple[float, float]:
    """Median seconds of a prefill, and of a step after one."""
    token = torch.full((1, 1), 10, device=kit.device)

    def timed(run: Callable[[], Any]) -> float:
        synchronise(kit.device)
        start = time.perf_counter()
        run()
        synchronise(kit.device)
        return time.perf_counter() - start

    prefill, step = [], []
    for _ in range(kit.repeats):
        prefill.append(timed(lambda: fast(**inputs, use_cache=True, logits_to_keep=1)))
        given = with_entries(fast, given_cache(fast(**inputs, use_cache=True, logits_to_keep=1)))

        def go(turns: int, given: Any = given) -> None:
            for _ in range(turns):
                fast(input_ids=token, **given)

        go(2)  # buffers grow at the first
        step.append(timed(lambda go=go: go(count)) / count)  # type: ignore[misc]
    return statistics.median(prefill), statistics.median(step)


# --- tables ---------------------------------------------------------------------------------------------


def tables(kit: Kit, name: str) -> Found:
    """Prefill and step at one decoder shape, of random weights."""
    shape = _cut_down(kit, name, kit.layers)
    common: dict[str, Any] = {"repeats": kit.repeats, "backend": kit.backend, "dtype": getattr(torch, kit.dtype), "device": kit.device}
    schedules = large(kit.capacity)
    under = f"{shape}, 64 text tokens, {kit.dtype}, {kit.backend}"
    prefill = Table(f"prefill, {under}", ("variant", "x compiled full", "FLOP-ideal", "of ideal", "x eager", "ms", "spread", "first s"))
    for row in bench.rows(bench.prefill(shape, schedules, **common)):
        prefill.rows.append((row.name, f"{row.against_compiled:.2f}", f"{row.ideal:.2f}", f"{row.of_ideal:.2f}", f"{row.against_eager:.2f}",
                             f"{row.ms:.1f}", f"{100 * row.spread:.0f} %", f"{row.first_s:.0f}"))  # fmt: skip
    stepping = {"none": Schedule.preset("none")} | {n: s for n, s in schedules.items() if n != "lightvlm 0.03"}
    variants = decode(shape, stepping, lengths=kit.lengths, **common)
    points = (0, *kit.lengths)
    step = Table(f"step, {under}", ("variant", *(f"ms after {n}" for n in points), "cache MiB", "recompiles"))
    for v in variants:
        step.rows.append((v.name, *(f"{1e3 * v.step(n):.2f}" for n in points), f"{v.peak / 2**20:.0f}", str(v.graphs)))
    return Found([prefill, step], [f"{v.name}: {v.graphs} graphs were compiled while steps were timed" for v in variants if v.graphs])


def _cut_down(kit: Kit, name: str, layers: int | None) -> Shape:
    """The shape with `layers` layers at most, and no more than fit the device's memory; its name says so."""
    whole = bench.shape(name)
    most = min(whole.layers, layers or whole.layers)
    if kit.cuda:
        each = whole.hidden * (2 * whole.hidden * (1 + whole.kv_heads / whole.heads) + 3 * whole.intermediate)
        free, _ = torch.cuda.mem_get_info()
        most = max(1, min(most, int(SHARE * free / (each * getattr(torch, kit.dtype).itemsize))))
    if most == whole.layers:
        return whole
    return dataclasses.replace(whole, name=f"{name}, {most} of {whole.layers} layers:", layers=most)


# --- ONNX Runtime ---------------------------------------------------------------------------------------


def onnxruntime(kit: Kit) -> Found:
    """An artifact of a tiny model on the device's provider: tokens of the compiled model, and time beside the CPU's provider."""
    try:
        import onnxruntime as runtime

        from lightvlm_fx.bench.artifact import Ours
        from lightvlm_fx.exporting.export import export
    except ImportError as error:
        return Found(skipped=f"not installed: {error}")
    wanted = "CUDAExecutionProvider" if kit.cuda else "CPUExecutionProvider"
    if wanted not in runtime.get_available_providers():
        return Found(skipped=f"this onnxruntime has no {wanted}, only {', '.join(runtime.get_available_providers())}")
    table = Table(f"ONNX Runtime {runtime.__version__}, tiny llava, float32",
                  ("schedule", "provider", "same tokens", "prefill ms", "step ms"))  # fmt: skip
    wrong: list[str] = []
    for name, schedule in {"none": Schedule.preset("none"), "lightvlm, capacity 40": Schedule.preset("lightvlm", capacity=40)}.items():
        tiny = zoo.build("llava")
        inputs = tiny.inputs(text=(9,), images=(1,))
        asked = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
        expected = lightvlm.compile(tiny.model, schedule, backend="eager").generate(**inputs, **asked)
        with tempfile.TemporaryDirectory() as spare:
            provider = "cuda" if kit.cuda else "cpu"
            made = export(tiny.model, schedule, Path(spare) / "artifact", inputs=inputs, new_tokens=16, provider=provider)
            for provider in dict.fromkeys((wanted, "CPUExecutionProvider")):
                same = _same_tokens(made, provider, inputs, expected)
                ours = Ours(made, providers=[provider])
                times = [statistics.median(_clocked(run) for _ in range(kit.repeats + 1)) for run in (ours.prefill, ours.step)]
                table.rows.append((name, provider, "yes" if same else "no", *(f"{1e3 * x:.2f}" for x in times)))
                if not same:
                    wrong.append(f"{name}: {provider} answers with other tokens than the compiled model")
    return Found([table], wrong)


def _same_tokens(made: Any, provider: str, inputs: dict[str, Tensor], expected: Tensor) -> bool:
    vlm = made.load(providers=[provider])
    got = vlm.generate(**{name: x.numpy() for name, x in inputs.items()}, max_new_tokens=8, min_new_tokens=8)
    return bool((torch.as_tensor(got) == expected).all())


def _clocked(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def parts(kit: Kit) -> dict[str, Callable[[Kit], Found]]:
    """All parts by name, in the order in which they run: checks, then tables, the largest last."""
    shapes = {f"tables {name}": (lambda kit, name=name: tables(kit, name)) for name in kit.shapes}
    return {"placement": placement, "steps": steps, "cuda-graphs": cuda_graphs, **shapes, "onnxruntime": onnxruntime}
