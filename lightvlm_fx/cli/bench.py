"""Commands `lightvlm bench ...`: what is measured of models; that of artifacts stands with their other commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lightvlm_fx.cli.base import (
    Backend,
    Console,
    Layers,
    Prepack,
    Presets,
    Prompt,
    Some,
    bench,
    dtype_of,
    err,
    out,
    preset_of,
    telling,
)
from lightvlm_fx.schedule import Schedule

PEERS = ("none", "lightvlm:keep=0.35", "lightvlm:keep=0.03", "lightvlm:keep=0.35:capacity=512")  # what `bench peers` compares with others


@bench.command("prefill")
def bench_prefill(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    keep: Annotated[list[float] | None, typer.Option(help="Keep ratio; may be repeated.")] = None,
    preset: Presets = None,
    batch: Some = 1,
    text: Prompt = 64,
    repeats: Some = 7,
    backend: Backend = "inductor",
    dtype: str = "bfloat16",
    device: str = "cpu",
    layers: Layers = None,
    prepack: Prepack = False,
    tower: Annotated[str, typer.Option(help="Vision tower: toy (next to nothing), or clip-l.")] = "toy",
    frames: Annotated[int, typer.Option(min=0, help="One video of so many frames a row, by a Qwen2-VL; 0: pictures, by a LLaVA.")] = 0,
) -> None:
    """Time from pixels to first logits: full model, compiled full model, compiled schedules, and the FLOP-ideal."""
    from lightvlm_fx.bench import prefill as program

    chosen = program.shape(shape, layers)
    schedules = {name: preset_of(name, []) for name in preset or []}
    if keep or not preset:
        bases = preset or ["lightvlm"]
        schedules = {f"{name} @ {ratio:g}": preset_of(name, [], keep=ratio) for name in bases for ratio in keep or [0.35, 0.03]}
    with err.status("building the model") as status:
        variants = program.prefill(chosen, schedules, batch=batch, text=text, repeats=repeats, backend=backend,
                                   dtype=dtype_of(dtype), device=device, prepack=prepack, tower=tower, frames=frames,
                                   tell=telling(status))  # fmt: skip
    table = Table("variant", "x compiled full", "FLOP-ideal", "of ideal", "x eager", "ms", "spread", "reduction", "rewrite s", "first s",
                  title=f"prefill from pixels, {chosen}{f' in a video of {frames} frames' * bool(frames)}, tower {tower}, batch {batch}, "
                        f"{text} text tokens, {dtype}, {backend}")  # fmt: skip
    for row in program.rows(variants):
        share = "-" if row.reduction_share is None else f"{100 * row.reduction_share:.1f} %"
        table.add_row(row.name, f"{row.against_compiled:.2f}", f"{row.ideal:.2f}", f"{row.of_ideal:.2f}", f"{row.against_eager:.2f}",
                      f"{row.ms:.0f}", f"{100 * row.spread:.0f} %", share, f"{row.rewrite_s:.1f}", f"{row.first_s:.0f}")  # fmt: skip
    Console(width=max(out.width, 140)).print(table)
    out.print(program.machine(device))


@bench.command("decode")
def bench_decode(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    capacity: Annotated[list[int] | None, typer.Option(help="Entries a layer; may be repeated.")] = None,
    preset: Annotated[str, typer.Option("--preset", "-p", help="Preset with a bounded cache, see `lightvlm presets`.")] = "h2o",
    length: Annotated[list[int] | None, typer.Option(help="New tokens of an answer; may be repeated.")] = None,
    batch: Some = 1,
    text: Prompt = 64,
    repeats: Some = 7,
    backend: Backend = "inductor",
    dtype: str = "bfloat16",
    device: str = "cpu",
    layers: Layers = None,
    prepack: Prepack = False,
) -> None:
    """Tokens a second of whole answers: DynamicCache, static cache with torch.compile, compiled schedules."""
    from lightvlm_fx.bench import prefill as program
    from lightvlm_fx.bench.decode import decode

    chosen, lengths = program.shape(shape, layers), tuple(length or (64, 1024, 4096))
    schedules = {f"{preset}, capacity {n}": Schedule.preset(preset, capacity=n) for n in capacity or [512]}
    with err.status("building the model") as status:
        variants = decode(chosen, schedules, lengths=lengths, batch=batch, text=text, repeats=repeats, backend=backend,
                          dtype=dtype_of(dtype), device=device, prepack=prepack, tell=telling(status))  # fmt: skip
    table = Table("variant", "new tokens", "x DynamicCache", "x static", "tokens/s", "first ms", "last ms", "cache MiB", "recompiles",
                  title=f"decode, {chosen}, batch {batch}, {text} text tokens, {dtype}, {backend}")  # fmt: skip
    for new in lengths:
        eager, static = (v.answer(new) for v in variants[:2])
        for v in variants:
            took = v.answer(new)
            table.add_row(v.name, str(new), f"{eager / took:.2f}", f"{static / took:.2f}", f"{batch * new / took:.1f}",
                          f"{1e3 * v.step(0):.1f}", f"{1e3 * v.step(new):.1f}", f"{v.peak / 2**20:.0f}", str(v.graphs))  # fmt: skip
    Console(width=max(out.width, 140)).print(table)
    out.print(program.machine(device))


@bench.command("peers")
def bench_peers(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    preset: Presets = None,
    engine: Annotated[list[str] | None, typer.Option(help="torch, onnxruntime or openvino; may be repeated (default: all).")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16; int8 or int4 (weights).")] = "bfloat16",
    length: Annotated[int, typer.Option(min=1, help="New tokens at which a later step is timed.")] = 4096,
    text: Prompt = 64,
    repeats: Some = 5,
    layers: Layers = None,
    work: Annotated[Path | None, typer.Option(help="Folder for exports, which a later run takes from there.")] = None,
) -> None:
    """What a user could take instead: transformers, its exports on ONNX Runtime and OpenVINO, and schedules on each, in turns."""
    from lightvlm_fx.bench import prefill as program
    from lightvlm_fx.bench.peers import ENGINES, limits, peers

    chosen = program.shape(shape, layers)
    schedules = {name: preset_of(name, []) for name in preset or PEERS}
    with err.status("building the model") as status:
        rows = peers(chosen, schedules, dtype=dtype, engines=tuple(engine or ENGINES), text=text, length=length, repeats=repeats, work=work,
                     tell=telling(status))  # fmt: skip
        flops, memory = limits(dtype)
    table = Table("engine", "what", "prefill ms", "GFLOP", "GFLOP/s", "step ms", f"step ms after {length}",
                  title=f"peers, {chosen}, {text} text tokens, {dtype}")  # fmt: skip
    for row in rows:
        if row.missing:
            table.add_row(row.engine, row.name, row.missing)
            continue
        prefill, first, last = (row.median(what) for what in ("prefill", "step 0", f"step {length}"))
        table.add_row(row.engine, row.name, f"{1e3 * prefill:.0f}", f"{row.flops / 1e9:.3g}", f"{row.flops / prefill / 1e9:.0f}",
                      f"{1e3 * first:.1f}", f"{1e3 * last:.1f}")  # fmt: skip
    Console(width=max(out.width, 150)).print(table)
    out.print(f"limits: products {flops:.0f} GFLOP/s in torch, reads {memory:.0f} GB/s")
    out.print(program.machine("cpu"))


@bench.command("answer")
def bench_answer(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    preset: Annotated[str, typer.Option("--preset", "-p", help="Preset with a bounded cache and its options.")] = "lightvlm:capacity=512",
    length: Annotated[int, typer.Option(help="New tokens.")] = 4096,
    text: Prompt = 64,
    backend: Backend = "inductor",
    dtype: str = "bfloat16",
    device: str = "cpu",
    layers: Layers = None,
) -> None:
    """One long answer in one piece: time a token and peak memory as it grows, recompiles, what choosing victims costs."""
    import itertools
    import statistics

    from lightvlm_fx.bench import prefill as program
    from lightvlm_fx.bench.answer import SETTLED, answer

    chosen = program.shape(shape, layers)
    with err.status("building the model") as status:
        made = answer(chosen, preset_of(preset, []), new=length, text=text, backend=backend, dtype=dtype_of(dtype),
                      device=device, tell=lambda n: status.update(f"token {n} of {length}"))  # fmt: skip
    title = f"one answer, {preset}, {chosen}, {text} text tokens, {dtype}, {backend}"
    table = Table("tokens", "ms a token", "peak MiB", "graphs compiled", title=title)
    marks = [1, 64, SETTLED, *range(1024, length, 1024), length]
    for first, end in itertools.pairwise(marks):
        ms = 1e3 * statistics.median(made.steps(first, end))
        table.add_row(f"{first} to {end}", f"{ms:.1f}", f"{made.peaks[end] / 2**20:.0f}", str(made.graphs[end] - made.graphs[first]))
    Console(width=max(out.width, 120)).print(table)
    slope, error = made.slope
    step = statistics.median(made.steps(SETTLED, length))
    grown = made.peaks[-1] / made.peaks[SETTLED] - 1
    out.print(f"after token {SETTLED}: a step {100 * slope:+.2f} % longer each 1000 tokens (standard error {100 * error:.2f} %), "
              f"peak memory {100 * grown:+.2f} %, {made.graphs[-1] - made.graphs[SETTLED]} recompiles; "
              f"choosing victims takes {1e3 * made.choice:.2f} ms, {100 * made.choice / step:.1f} % of it", soft_wrap=True)  # fmt: skip
    out.print(program.machine(device))


@bench.command("size")
def bench_size(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    preset: Annotated[str, typer.Option("--preset", "-p", help="Preset and its options.")] = "lightvlm",
    text: Prompt = 64,
    repeats: Some = 7,
    dtype: str = "bfloat16",
    device: str = "cpu",
    layers: Layers = None,
) -> None:
    """The graph that serves every size beside one made for the size (`static=True`): prefill and step, in turns."""
    import statistics

    from lightvlm_fx.bench import prefill as program
    from lightvlm_fx.bench.size import compare, ratio

    chosen = program.shape(shape, layers)
    with err.status("building the model") as status:
        made = compare(chosen, preset_of(preset, []), text=text, repeats=repeats, dtype=dtype_of(dtype), device=device,
                       tell=telling(status))  # fmt: skip
    table = Table("graph", "prefill ms", "step ms", "first answer s", title=f"{preset}, {chosen}, {text} text tokens, {dtype}, inductor")
    for variant in made:
        times = [f"{1e3 * statistics.median(x):.1f}" for x in (variant.prefill, variant.step)]
        table.add_row(variant.name, *times, f"{variant.first_s:.1f}")
    Console(width=max(out.width, 120)).print(table)
    out.print(f"every size / this size: prefill {ratio(made, 'prefill'):.3f}, step {ratio(made, 'step'):.3f}")
    out.print(program.machine(device))


@bench.command("first")
def bench_first(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    preset: Annotated[str, typer.Option("--preset", "-p", help="Preset and its options.")] = "lightvlm",
    text: Prompt = 64,
    backend: Backend = "inductor",
    dtype: str = "bfloat16",
    layers: Layers = None,
) -> None:
    """Seconds to the first answer of a new process: with an empty compile cache, and with what the process before left."""
    from lightvlm_fx.bench import prefill as program
    from lightvlm_fx.bench.first import both

    with err.status("two processes, one after the other"):
        schedule = preset_of(preset, []).model_dump_json()
        processes = both(shape=shape, layers=layers, schedule=schedule, text=text, dtype=dtype, backend=backend)
    table = Table("compile cache", "stage", "capture s", "rewriting s", "compiling, first run s", "first answer s", "second answer s",
                  title=f"first answer, {preset}, {program.shape(shape, layers)}, {text} text tokens, {dtype}, {backend}")  # fmt: skip
    for cache, made in zip(("empty", "full"), processes, strict=True):
        for i, stage in enumerate(made.stages):
            times = [f"{stage[what]:.1f}" for what in ("capture", "rewrite", "first_run")]
            answers = [f"{made.answer:.1f}", f"{made.again:.2f}"] if i == 0 else ["", ""]
            table.add_row(cache if i == 0 else "", stage["stage"], *times, *answers)
    Console(width=max(out.width, 140)).print(table)
    out.print(program.machine("cpu"))


@bench.command("memory")
def bench_memory(
    preset: Annotated[str, typer.Option("--preset", "-p", help="Preset and its options, as lightvlm:combine=recover.")] = "lightvlm",
    tokens: Annotated[list[int] | None, typer.Option(help="Visual tokens of the video, in frames of 72; may be repeated.")] = None,
    repeats: Some = 1,
    backend: Backend = "eager",
) -> None:
    """Peak memory and time of the prefill of one long video by a tiny Qwen2.5-VL, beside those of the same model unreduced."""
    from lightvlm_fx.bench import prefill as program
    from lightvlm_fx.bench.memory import apart

    table = Table("visual tokens", "unreduced MiB", "reduced MiB", "of unreduced", "unreduced ms", "reduced ms",
                  title=f"prefill of one video, tiny Qwen2.5-VL, {preset}, {backend}")  # fmt: skip
    with err.status("measuring") as status:
        for n in tokens or [1008, 2880, 5760, 8640, 11520]:
            status.update(f"{n} visual tokens")
            full, reduced = (apart(n, schedule, backend, repeats) for schedule in (Schedule.preset("none"), preset_of(preset, [])))
            share = f"{reduced.peak / full.peak:.2f}" if full.peak else "-"
            table.add_row(str(n), f"{full.peak / 2**20:.0f}", f"{reduced.peak / 2**20:.0f}", share,
                          f"{1e3 * full.seconds:.0f}", f"{1e3 * reduced.seconds:.0f}")  # fmt: skip
    Console(width=max(out.width, 120)).print(table)
    out.print(program.machine("cpu"))


@bench.command("cache")
def bench_cache(
    preset: Annotated[list[str] | None, typer.Option("--preset", "-p", help="Preset and its options; may be repeated.")] = None,
    text: Prompt = 64,
    length: Annotated[int, typer.Option(help="New tokens.", min=1)] = 8,
) -> None:
    """Memory that an answer's keys and values take, beside the uncompiled source's, and what stays once it is dropped."""
    from lightvlm_fx.bench import prefill as program
    from lightvlm_fx.bench.cache import SHAPE, SOURCE, apart

    schedules = {SOURCE: None} | {name: preset_of(name, []) for name in preset or ["none", "lightvlm"]}
    table = Table("model", "peak MiB", "held MiB", "left MiB", "held, of source",
                  title=f"one answer, {SHAPE.layers} layers x {SHAPE.kv_heads} KV heads x {SHAPE.hidden // SHAPE.heads}, "
                        f"{SHAPE.visual} visual and {text} text tokens, {length} new, float32, eager")  # fmt: skip
    source = None
    for name, schedule in schedules.items():
        with err.status(f"measuring {name}"):
            found = apart(name, schedule, text, length)
        source = source or found
        share = f"{found.held / source.held:.2f}" if source.held else "-"
        table.add_row(name, *(f"{x / 2**20:.0f}" for x in (found.peak, found.held, found.left)), share)
    Console(width=max(out.width, 120)).print(table)
    out.print(program.machine("cpu"))


@bench.command("gpu")
def bench_gpu(
    device: Annotated[str, typer.Option(help="cuda; cpu runs the same at a tiny shape.")] = "cuda",
    part: Annotated[list[str] | None, typer.Option(help="Part, or the first word of some; may be repeated.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="Decoder shape of a table; may be repeated.")] = None,
    layers: Layers = None,
    repeats: Some = 5,
    minutes: Annotated[float, typer.Option(help="Parts that do not fit into these are ended, or not begun.", min=0)] = 25.0,
    backend: Backend = "inductor",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for gpu.md, gpu.json and gpu.log.")] = Path("out"),
) -> None:
    """Every check and table that needs a GPU. Exit code 1 where a part failed or was not run; the others' results are written anyway."""
    from lightvlm_fx.bench import gpu
    from lightvlm_fx.bench import prefill as program

    on_gpu = device.startswith("cuda")
    tiny: dict[str, Any] = {} if on_gpu else {"shapes": ("tiny",), "dtype": "float32", "lengths": (4,), "capacity": 48}
    kit = gpu.Kit(device=device, layers=layers, backend=backend, repeats=repeats, **tiny)
    kit = dataclasses.replace(kit, shapes=tuple(shape)) if shape else kit
    with err.status("beginning") as status:
        results = gpu.run(kit, part or (), minutes=minutes, folder=output, tell=telling(status))
    console = Console(width=max(out.width, 140))
    for result in results:
        out.print(f"{result.part}: {result.verdict}, {result.seconds:.0f} s", style="bold green" if result.good else "bold red")
        for said in result.said:
            out.print(said, soft_wrap=True)
        for found in result.tables:
            table = Table(*found.columns, title=found.title)
            for row in found.rows:
                table.add_row(*row)
            console.print(table)
    out.print(program.machine(device))
    out.print(f"wrote {output / 'gpu.md'}")
    if not all(result.good for result in results):
        raise typer.Exit(1)
