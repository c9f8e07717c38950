"""The server's paths."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lightvlm_fx.serving.chat import Chat
from lightvlm_fx.serving.engine import ServerEngine
from lightvlm_fx.serving.limits import Limits
from lightvlm_fx.serving.metrics import TYPE
from lightvlm_fx.serving.problems import Refusal
from lightvlm_fx.serving.sources import Sources


def build(engine: ServerEngine, limits: Limits | None = None, sources: Sources | None = None) -> Starlette:
    """The server of one engine as an ASGI application: chat completions, models, health, metrics. Pictures from data: URLs by default."""
    limits = limits or Limits()
    chat = Chat(engine, limits, sources or Sources(remote=False))
    model = {"id": engine.name, "object": "model", "created": int(time.time()), "owned_by": "lightvlm", "fingerprint": engine.fingerprint}
    model |= engine.about

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        if request.path_params["name"] != engine.name:
            raise HTTPException(404, f"no model named {request.path_params['name'][:80]!r}; this server has {engine.name!r}")
        return JSONResponse(model)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "model": engine.name, "inside": chat.gate.inside, "running": chat.runner.running})

    async def metrics(_: Request) -> Response:
        return Response(chat.metrics.text(), headers={"content-type": TYPE})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(chat.close)

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models), Route("/v1/models/{name:path}", one_model),
        Route("/health", health), Route("/metrics", metrics),
    ]  # fmt: skip
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _refused})


async def _refused(_: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the form of all errors."""
    assert isinstance(error, HTTPException)
    said = Refusal(error.status_code, error.detail)
    return JSONResponse(said.body(), error.status_code, headers=dict(error.headers or {}))


def serve(app: Any, host: str, port: int, grace: int, tell: Any) -> None:
    """Serve `app` until a signal ends it; answers that run have `grace` seconds then. `tell` is called with the address in use.

    Raises OSError where the address is taken, or not of this machine.
    """
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listening:
        taken = listening.getsockname()[1]
        tell(f"http://{f'[{host}]' if ':' in host else host}:{taken}")
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace, server_header=False, lifespan="on")
        uvicorn.Server(config).run(sockets=[listening])
