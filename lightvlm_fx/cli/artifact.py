"""The commands of `lightvlm` that make and use artifacts. `run`, `verify`, `inspect` and `package` never import torch."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lightvlm_fx.cli.base import Console, File, Layers, Preset, Prompt, app, bench, err, out, plain, preset_of, schedule_of, telling
from lightvlm_fx.errors import InputError, UnknownName
from lightvlm_fx.serving.opening import load_model

Folder = Annotated[Path, typer.Argument(help="An artifact: a folder that `lightvlm export` wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Providers = Annotated[
    list[str] | None, typer.Option("--provider", help="ONNX Runtime's execution provider, repeatable; or OpenVINO's device (default: CPU).")
]
PROVIDER_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@app.command()
def export(
    model: Annotated[str | None, typer.Argument(help="Model folder or hub name (default: the bundled model).")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; replaces an artifact there.")] = Path("artifact"),
    preset: Preset = "lightvlm", file: File = None,
    keep: Annotated[str | None, typer.Option(help="Visual tokens left: ratio or count.")] = None,
    target: Annotated[str, typer.Option(help="onnxruntime, openvino, tensorrt or torch-export.")] = "onnxruntime",
    provider: Annotated[str, typer.Option(help="Execution provider that the graphs are for: cpu, cuda or tensorrt.")] = "cpu",
    dtype: Annotated[str, typer.Option(
        help="float32, float16, bfloat16; int8 or int4: of the decoder's weights, which ONNX Runtime multiplies by activations of 8 bits.",
    )] = "float32",
    image: Annotated[list[Path] | None, typer.Option("--image", help="Example picture, the largest of a bucket; each makes one.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Pictures in the example's prompt.")] = 1,
    pictures: Annotated[int | None, typer.Option(min=1, help="Most pictures of a row (default: 4, or the example's).")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 1,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Longest prompt, with pictures (default: the example and 64).")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, where the schedule does not bound the cache.")] = 256,
    aot_inductor: Annotated[bool, typer.Option(help="torch-export: also compile each stage for this machine.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write what was done to this JSON file.")] = None,
) -> None:  # fmt: skip
    """Write a folder that runs a model under a schedule on ONNX Runtime, OpenVINO, TensorRT or torch.export."""
    import lightvlm_fx as lightvlm
    from lightvlm_fx.exporting.example import example
    from lightvlm_fx.pictures import open_picture

    schedule = schedule_of(preset, keep, file)
    with err.status("loading the model") as status:
        source, processor = load_model(model)
        opened = [[open_picture(path)] * images for path in image or []]
        sizes = opened or [[]]
        batches = [example(processor, shown, rows=rows, images=images) for shown in sizes]
        made = lightvlm.export(
            source, schedule, output, target=target, inputs=batches, processor=processor, prompt_tokens=prompt_tokens,
            images=pictures, new_tokens=new_tokens, dtype=dtype, provider=provider, aot_inductor=aot_inductor, tell=telling(status),
        )  # fmt: skip
    size = sum(f["bytes"] for f in made.manifest["files"].values())
    said_of_all = ("target", "provider", "dtype", "architecture", "schedule", "fingerprint", "parity", "parser", "versions")
    summary = {"folder": str(output), "seconds": round(made.seconds, 1), "bytes": size} | {k: made.manifest.get(k) for k in said_of_all}
    summary["buckets"] = [{k: v for k, v in b.items() if k not in ("samples", "stages")} for b in made.manifest["buckets"]]
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    out.print(f"{output}: {len(made.manifest['files'])} files, {size / 2**20:.1f} MiB, in {made.seconds:.0f} s")
    found = made.manifest["parity"]
    if found:
        tokens = "equal" if found["tokens_equal"] else "differ"
        said = f"against the compiled model: logits within {found['logits']:.1e} of the largest, greedy tokens {tokens}"
        out.print(said, soft_wrap=True)
    if made.manifest.get("parser"):
        out.print(f"{made.manifest['parser']} parses every graph")


@app.command()
def verify(
    folder: Folder,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Source model to compare with, too (needs torch).")] = None,
    providers: Providers = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Check an artifact: hashes, operators, parity. Exits with 0, or 1 (files), 3 (lint), 4 (parity); 2: not readable; 70: a defect."""
    from lightvlm_fx.artifact.verify import verify as check

    fast = None
    if model is not None:
        import lightvlm_fx as lightvlm
        from lightvlm_fx.artifact.manifest import read
        from lightvlm_fx.exporters.precision import cast

        made = read(folder)
        fast = lightvlm.compile(cast(load_model(model)[0], made["dtype"]), lightvlm.Schedule(**made["schedule"]), backend="eager")
    verdict = check(folder, model=fast, providers=provider_names(providers))
    print(json.dumps(verdict.as_dict(), indent=1) if as_json else plain(str(verdict)))
    raise typer.Exit(verdict.exit_code)


@app.command()
def inspect(folder: Folder, as_json: Json = False) -> None:
    """Show what an artifact holds: stages, shapes, tokens a layer, bytes, operators, schedule."""
    from lightvlm_fx.artifact.manifest import read

    manifest = read(folder)
    if as_json:
        print(json.dumps(manifest, indent=1))
        return
    size = sum(f["bytes"] for f in manifest["files"].values())
    out.print(f"{manifest['architecture']} under {manifest['schedule']['name']} ({manifest['fingerprint']}), for {manifest['target']} on "
              f"{manifest['provider']}, {manifest['dtype']}, {size / 2**20:.1f} MiB")  # fmt: skip
    for number, bucket in enumerate(manifest["buckets"]):
        table = Table("stage", "file", "nodes", "inputs", "outputs", "most frequent operators", title=f"bucket {number}")
        for name, stage in bucket["stages"].items():
            often = sorted(stage["operators"].items(), key=lambda kv: -kv[1])[:4]
            table.add_row(name, stage["file"], str(sum(stage["operators"].values())), _shapes(stage["inputs"]), _shapes(stage["outputs"]),
                          ", ".join(f"{n} {op}" for op, n in often))  # fmt: skip
        out.print(table)
        alone = " of the sizes of the example alone" if bucket["vision"]["kind"] == "fixed" else ""
        answer = f"{bucket['new_tokens']} new tokens" if bucket["new_tokens"] else "answers of any length"
        out.print(f"{bucket['rows']} rows of at most {bucket['prompt_tokens']} tokens, {bucket['text_tokens']} of them text, "
                  f"{bucket['visual_tokens']} of at most {bucket['pictures']} pictures{alone}; {answer}")  # fmt: skip
        out.print(f"tokens a layer: {bucket['tokens_per_layer']}\ncache slots a layer: {bucket['cache_slots']}")
    out.print(f"schedule: {json.dumps(manifest['schedule'])}")


@app.command()
def package(
    folder: Folder,
    server: Annotated[str, typer.Option("--for", help="triton or kserve.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Triton's model repository, or the folder of the YAML file.")],
    name: Annotated[str | None, typer.Option(help="The model's name (default: the folder's).")] = None,
    providers: Providers = None,
    image: Annotated[str | None, typer.Option(help="kserve: container image that holds `lightvlm`.")] = None,
    storage_uri: Annotated[str | None, typer.Option(help="kserve: where the artifact lies, as in pvc://claim/artifact.")] = None,
) -> None:
    """Write what Triton (python backend) or KServe (InferenceService) takes to answer from an artifact."""
    from lightvlm_fx.artifact.manifest import read
    from lightvlm_fx.integrations import deploy

    if server not in ("triton", "kserve"):
        raise UnknownName.of("server", server, ("triton", "kserve"))
    chosen = providers or [read(folder).get("provider", "cpu")]
    if server == "triton":
        if image or storage_uri:
            raise InputError("--image and --storage-uri are for kserve: Triton's model repository holds a copy of the artifact")
        written = deploy.triton(folder, output, name=name, providers=provider_names(chosen))
    elif image is None or storage_uri is None:
        raise InputError("kserve needs --image, a container image that holds `lightvlm`, and --storage-uri, where the artifact lies")
    else:
        written = deploy.kserve(folder, output, image=image, storage_uri=storage_uri, name=name, providers=chosen)
    out.print(str(written), soft_wrap=True)


@app.command()
def run(
    folder: Folder,
    image: Annotated[list[Path] | None, typer.Option("--image", help="Picture; repeat for several in one prompt.")] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Question.")] = "describe the picture .",
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer (default: generation_config.json's).")] = None,
    do_sample: Annotated[bool, typer.Option(help="Sample instead of taking the likeliest token.")] = False,
    temperature: float = 1.0, top_k: int = 50, top_p: float = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    providers: Providers = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Ask an artifact; the answer streams. Needs transformers for its processor, and no torch."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import TextStreamer

    from lightvlm_fx.artifact.load import load
    from lightvlm_fx.pictures import inputs_of, open_picture, processor_of

    class Plain(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(plain(text), stream_end)

    vlm = load(folder, providers=provider_names(providers))
    processor = processor_of(vlm)
    pictures = [open_picture(path) for path in image or []]
    inputs = inputs_of(processor, prompt, pictures, "np")
    streamer = None if as_json else Plain(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    start = time.perf_counter()
    tokens = vlm.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer, do_sample=do_sample, temperature=temperature,
                          top_k=top_k, top_p=top_p, seed=seed)  # fmt: skip
    if as_json:
        new = tokens[:, inputs["input_ids"].shape[1] :]
        answer = processor.batch_decode(new, skip_special_tokens=True)[0].strip()
        print(json.dumps({"answer": answer, "tokens": new[0].tolist(), "seconds": round(time.perf_counter() - start, 3)}))


@bench.command("artifact")
def bench_artifact(
    shape: Annotated[str, typer.Option(help="Decoder shape.")] = "0.5b",
    layers: Layers = None,
    preset: Preset = "lightvlm:capacity=512",
    text: Prompt = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 5,
    prepack: Annotated[bool, typer.Option(help="The decode session rearranges weights into memory of its own.")] = False,
    target: Annotated[str, typer.Option(help="The artifact's: onnxruntime or openvino.")] = "onnxruntime",
    weights: Annotated[list[str] | None, typer.Option(help="The artifact's dtype, as int8; may be repeated (default: float32).")] = None,
) -> None:
    """An artifact beside the same model as transformers' own exporter writes it, on ONNX Runtime's CPU; or the artifact on OpenVINO's."""
    from lightvlm_fx.artifact.targets import TARGETS
    from lightvlm_fx.bench import prefill as program
    from lightvlm_fx.bench.artifact import LENGTHS, compare

    chosen = program.shape(shape, layers)
    with err.status("building the model") as status:
        found = compare(chosen, preset_of(preset, []), text=text, repeats=repeats, prepack=prepack, target=target,
                        weights=weights or ["float32"], tell=telling(status))  # fmt: skip
    title = f"{TARGETS[target].title} beside ONNX Runtime on CPU, {preset}, {chosen}, {text} text tokens"
    table = Table("", "transformers' export", *(name for dtype in found.ours for name in (f"artifact, {dtype}", "ratio")), title=title)

    def row(name: str, shown: str, theirs: float, *ours: float) -> None:
        table.add_row(name, shown.format(theirs), *(cell for x in ours for cell in (shown.format(x), f"{theirs / x:.2f}")))

    sides = [found.theirs, *found.ours.values()]
    row("prefill", "{:.0f} ms", *(1e3 * side.prefill for side in sides))
    for length in found.theirs.steps:
        row(f"step after {length} tokens", "{:.1f} ms", *(1e3 * side.steps[length] for side in sides))
    for length in LENGTHS:
        row(f"steps of an answer of {length}", "{:.1f} s", *(side.answer(length) for side in sides))
    Console(width=max(out.width, 150)).print(table)
    first, base = next(iter(found.ours.items()))
    for dtype, side in found.ours.items():
        speed, written = found.theirs.prefill / side.prefill, found.written[dtype]
        out.print(f"{dtype}: prefill {speed:.2f} of {found.ideal:.2f} by FLOPs, {speed / found.ideal:.2f} of it", soft_wrap=True)
        if side is not base:
            steps = " / ".join(f"{base.steps[n] / side.steps[n]:.2f}" for n in side.steps)
            out.print(f"  against {first}: prefill {base.prefill / side.prefill:.2f}, steps {steps} times as fast", soft_wrap=True)
        out.print(f"  export: {written.seconds:.0f} s, at most {written.peak:.2f} times the weights beside the model")
        out.print(f"  weight file: {written.data / found.weights:.3f} of the language model's weights in float32; with prefill and decode "
                  f"open, {written.resident:.2f} of them are resident (PSS)", soft_wrap=True)  # fmt: skip
        if written.parity is not None:
            tokens = "the same as" if written.parity["tokens_equal"] else "other than"
            apart = f"logits within {written.parity['logits']:.1e} of the largest"
            out.print(f"  greedy tokens: {tokens} the compiled model's; {apart}", soft_wrap=True)
    out.print(program.machine("cpu"))


def provider_names(names: list[str] | None) -> tuple[str, ...]:
    return tuple(PROVIDER_NAMES.get(n.lower(), n) for n in names or ["cpu"])


def _shapes(values: list[dict[str, Any]]) -> str:
    shown = [f"{v['name']} {'x'.join(map(str, v['shape']))}" for v in values[:3]]
    return "\n".join(shown + ([f"and {len(values) - 3} more"] if len(values) > 3 else []))
