"""`lightvlm serve`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from lightvlm_fx.cli.artifact import Providers, provider_names
from lightvlm_fx.cli.base import Backend, File, app, err, out, schedule_of, telling
from lightvlm_fx.errors import InputError
from lightvlm_fx.serving.opening import is_artifact, open_engine

NEEDED = ("starlette", "uvicorn", "prometheus_client")
MIB = 2**20


@app.command()
def serve(
    source: Annotated[str | None, typer.Argument(metavar="MODEL_OR_ARTIFACT", help="Folder (default: the bundled model).")] = None,
    preset: Annotated[str | None, typer.Option("--preset", "-p", help="Of a model: default lightvlm; `none` reduces nothing.")] = None,
    keep: Annotated[str | None, typer.Option(help="Of a model: visual tokens left, ratio or count.")] = None,
    file: File = None, backend: Backend = "inductor",
    device: Annotated[str, typer.Option(help="Of a model: cpu, cuda, ...")] = "cpu",
    providers: Providers = None,
    name: Annotated[str | None, typer.Option(help="The model's name in requests (default: the folder's).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    parallel: Annotated[int, typer.Option(min=1, help="Answers at once.")] = 1,
    queue: Annotated[int, typer.Option(min=0, help="Requests that wait beside them; others are told 503.")] = 32,
    timeout: Annotated[float, typer.Option(help="Seconds until an answer must be complete; then 504.")] = 300,
    requests_per_minute: Annotated[int, typer.Option(min=0, help="Of one address, then 429; 0: no limit.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Longest prompt, with the tokens of pictures.")] = 8192,
    max_pictures: Annotated[int, typer.Option(min=1, help="Pictures of a request.")] = 8,
    picture_mib: Annotated[float, typer.Option(help="MiB of a picture, then 413.")] = 20,
    picture_megapixels: Annotated[float, typer.Option(help="Pixels of a picture, then 413.")] = 50,
    request_mib: Annotated[float, typer.Option(help="MiB of a request's body, then 413.")] = 32,
    remote: Annotated[bool, typer.Option(help="Fetch pictures from http(s) URLs at public addresses.")] = True,
    allow_private: Annotated[bool, typer.Option("--allow-private", help="Also from private and loopback addresses.")] = False,
    allow_files: Annotated[Path | None, typer.Option(help="Also from file:// URLs that lead into this folder.")] = None,
    grace: Annotated[int, typer.Option(min=0, help="Seconds that answers have when the server is told to end.")] = 30,
) -> None:  # fmt: skip
    """Answer OpenAI's chat completions, with pictures and streaming, from a model under a schedule or an artifact (no torch)."""
    lacking = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if lacking:
        raise ImportError(f"this command needs {', '.join(lacking)}: pip install 'lightvlm-fx[serve]', or the packages alone")
    from lightvlm_fx.serving.app import build
    from lightvlm_fx.serving.app import serve as listen
    from lightvlm_fx.serving.limits import Limits
    from lightvlm_fx.serving.sources import Sources

    limits = Limits(
        tokens=max_tokens, prompt_tokens=max_prompt_tokens, pictures=max_pictures, picture_bytes=int(picture_mib * MIB),
        picture_pixels=int(picture_megapixels * 1e6), request_bytes=int(request_mib * MIB), per_minute=requests_per_minute,
        parallel=parallel, queue=queue, seconds=timeout,
    )  # fmt: skip
    if allow_files is not None and not allow_files.is_dir():
        raise InputError(f"--allow-files: there is no folder {allow_files}")
    sources = Sources(remote=remote, private=allow_private, folder=allow_files)
    fixed = source is not None and is_artifact(source)
    if fixed and (preset or keep or file):
        raise InputError(f"{source} is an artifact, whose schedule is fixed; leave out --preset, --keep and --schedule")
    schedule = None if fixed else schedule_of(preset or "lightvlm", keep, file)
    with err.status("opening the artifact" if fixed else "loading the model") as status:
        engine = open_engine(source, name=name, schedule=schedule, backend=backend, device=device, providers=provider_names(providers),
                             tell=telling(status))  # fmt: skip
    called = engine.name
    app = build(engine, limits, sources)
    listen(app, host, port, grace, lambda address: out.print(f"serving {called} at {address}/v1", soft_wrap=True))
