"""One request and its reply over ASGI: bodies and replies with limits of size and time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from lightvlm_fx.serving.limits import Limits
from lightvlm_fx.serving.problems import Refusal
from lightvlm_fx.serving.protocol import event

DRAINED = 8  # times the limit, of a body that is refused: many clients hear of it only once they have sent all


class Left(Exception):
    """The client went away."""


class TooSlow(Exception):
    """The client does not take what it asked for."""


async def body_of(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    """A request's body. Raises Refusal: 413 where it is above the limit, 408 where it takes too long, 415 where it is not JSON; Left.

    A page of another site can send a browser here with any type of content but JSON's, for which browsers ask first.
    """
    most = limits.request_bytes
    refusal = Refusal(413, f"the request has more than {most} bytes, which is this server's limit; send smaller pictures",
                      code="request_too_large")  # fmt: skip
    headers = Headers(scope=scope)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "a request must have the header Content-Type: application/json", code="unsupported_media_type")
    declared = headers.get("content-length", "")
    declared_size = int(declared) if declared.isdecimal() else 0
    if declared_size > most and (declared_size > DRAINED * most or "expect" in headers):
        raise refusal
    kept, size = bytearray(), 0
    try:
        async with asyncio.timeout(limits.receive_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Left
                size += len(message.get("body", b""))
                if size > DRAINED * most:
                    raise refusal
                if max(size, declared_size) <= most:
                    kept += message.get("body", b"")
                else:
                    kept.clear()
                if not message.get("more_body", False):
                    break
    except TimeoutError as error:
        raise Refusal(408, f"the request's body was not here after {limits.receive_seconds:g} s") from error
    if size > most:
        raise refusal
    return bytes(kept)


async def unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do `work` while the client is there. Raises Left, with `work` cancelled, once it is not."""
    tasks = [asyncio.create_task(work), asyncio.create_task(_gone(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise Left
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


class Reply:
    """A reply as it is sent: `status` says which, 0 before it has begun; `complete` whether all was handed on."""

    def __init__(self, send: Send, id: str, seconds: float) -> None:  # noqa: A002  (the protocol's word)
        self._send, self._seconds, self.id = send, seconds, id
        self._headers = {"x-request-id": id}
        self.status, self.complete = 0, False

    async def whole(self, body: dict[str, Any], status: int = 200, **headers: str) -> None:
        """A JSON object."""
        await self._begin(status, {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()})
        await self._put({"type": "http.response.body", "body": json.dumps(body).encode()})
        self.complete = True

    async def refuse(self, refusal: Refusal) -> None:
        """An error: as the reply, or as the last event of a stream that has begun."""
        if self.status:
            await self.part(event(refusal.body()))
            await self.close()
        else:
            headers = refusal.headers() | ({"connection": "close"} if refusal.status in (408, 413) else {})
            await self.whole(refusal.body(), refusal.status, **headers)

    async def stream(self) -> None:
        """Begin a stream of events."""
        await self._begin(200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"})

    async def part(self, data: bytes) -> None:
        await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def close(self) -> None:
        await self._put({"type": "http.response.body", "body": b""})
        self.complete = True

    async def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        raw = [(k.encode(), v.encode()) for k, v in (self._headers | headers).items()]
        await self._put({"type": "http.response.start", "status": status, "headers": raw})

    async def _put(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError as error:
            raise TooSlow from error
        except OSError as error:
            raise Left from error
