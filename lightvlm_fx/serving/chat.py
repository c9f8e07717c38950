"""POST /v1/chat/completions, from the first byte of a request to the last of its answer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from lightvlm_fx.pictures import TooLarge, picture_in
from lightvlm_fx.serving.engine import ServerEngine
from lightvlm_fx.serving.exchange import Left, Reply, TooSlow, body_of, unless_gone
from lightvlm_fx.serving.gate import Gate, Slot
from lightvlm_fx.serving.jobs import End, Job, Runner, refusal_of
from lightvlm_fx.serving.limits import Limits
from lightvlm_fx.serving.metrics import Metrics
from lightvlm_fx.serving.problems import Refusal
from lightvlm_fx.serving.protocol import Request, Usage, Writer, read
from lightvlm_fx.serving.rate import Rate
from lightvlm_fx.serving.room import check_text, options_of
from lightvlm_fx.serving.sources import Sources

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """A request with the bytes of its pictures, and where each stands in it."""

    request: Request
    pictures: list[tuple[str, bytes]]


class Chat:
    """The endpoint. Reading and fetching, preparing, and answering have threads of their own, so that none waits for a slow client."""

    def __init__(self, engine: ServerEngine, limits: Limits, sources: Sources) -> None:
        self.engine, self.limits, self.sources = engine, limits, sources
        self.gate, self.rate, self.runner = Gate(limits.parallel + limits.queue), Rate(limits.per_minute), Runner(engine, limits.parallel)
        self.metrics = Metrics(lambda: self.gate.inside, lambda: self.runner.running)
        self.reading = ThreadPoolExecutor(self.gate.most, "read")  # each may wait for a picture
        self.preparing = ThreadPoolExecutor(1, "prepare")  # tokenizers are for one thread at a time

    def close(self) -> None:
        self.runner.close()
        self.preparing.shutdown(cancel_futures=True)
        self.reading.shutdown(cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        turn = _Turn(self, Reply(send, f"chatcmpl-{uuid.uuid4().hex}", self.limits.send_seconds))
        status = await turn.serve(scope, receive)
        self.metrics.requests.labels(status).inc()
        self.metrics.seconds.observe(time.perf_counter() - begun)

    def ask(self, body: bytes) -> Asked:
        """What a body asks, with its pictures fetched. Raises Refusal."""
        request, limits = read(body), self.limits
        if request.model != self.engine.name:
            raise Refusal(404, f"no model named {request.model[:80]!r}; this server has {self.engine.name!r}",
                          param="model", code="model_not_found")  # fmt: skip
        urls = request.pictures()
        if len(urls) > limits.pictures:
            raise Refusal(400, f"the request holds {len(urls)} pictures, this server takes at most {limits.pictures}", param="messages")
        pictures, left, end = [], limits.request_bytes, time.monotonic() + limits.fetch_seconds
        for where, url in urls:
            try:
                data = self.sources.fetch(url, min(limits.picture_bytes, left), end)
            except Refusal as refusal:
                refusal.param = where
                raise
            pictures.append((where, data))
            left -= len(data)
        return Asked(request, pictures)

    def prepare(self, asked: Asked) -> dict[str, Any]:
        """What the engine answers. Raises Refusal."""
        chat, pictures = asked.request.chat(), []
        check_text(chat, self.limits)
        for where, data in asked.pictures:
            try:
                pictures.append(picture_in(data, where, self.limits.picture_pixels))
            except TooLarge as error:
                raise Refusal(413, str(error), param=where, code="picture_too_large") from error
        return self.engine.prepare(chat, pictures)


class _Turn:
    """One request on its way."""

    def __init__(self, chat: Chat, reply: Reply) -> None:
        self.chat, self.reply = chat, reply
        self.begun = time.perf_counter()
        self.deadline = asyncio.get_running_loop().time() + chat.limits.seconds
        self.slot: Slot | None = None
        self.thread: Future[Any] | None = None  # what works on it at last

    async def serve(self, scope: Scope, receive: Receive) -> str:
        """Answer, or refuse; returns how it ended, for the metrics."""
        try:
            self.chat.rate.take((scope.get("client") or ("",))[0])
            self.slot = self.chat.gate.enter()
            await unless_gone(self._answer(await body_of(scope, receive, self.chat.limits)), receive)
        except Left:
            return str(self.reply.status) if self.reply.complete else "left"
        except TooSlow:
            return "too slow"
        except Exception as error:  # whatever it is, the client has to hear of it
            return await self._refuse(refusal_of(error))
        finally:
            self._leave()
        return str(self.reply.status)

    async def _refuse(self, refusal: Refusal) -> str:
        try:
            await self.reply.refuse(refusal)
        except (Left, TooSlow):
            return "left"
        return str(refusal.status)

    def _leave(self) -> None:
        """Give the place back once no thread works on the request, be the client there or not."""
        if self.slot is not None:
            slot, loop, self.slot = self.slot, asyncio.get_running_loop(), None
            if self.thread is None:
                slot.leave()
            else:
                self.thread.add_done_callback(lambda _: loop.call_soon_threadsafe(slot.leave))

    async def _answer(self, body: bytes) -> None:
        chat = self.chat
        asked = await self._in(chat.reading, chat.ask, body)
        del body  # nor are pictures held while an answer is made, or a slow client takes it
        request, pictures, size = asked.request, len(asked.pictures), sum(len(data) for _, data in asked.pictures)
        inputs = await self._in(chat.preparing, chat.prepare, asked)
        del asked
        prompt = int(inputs["input_ids"].shape[1])
        options = options_of(request, prompt, chat.engine, chat.limits)
        chat.metrics.prompt_tokens.inc(prompt)
        chat.metrics.pictures.inc(pictures)
        chat.metrics.picture_bytes.inc(size)
        job = chat.runner.start(inputs, options, request.stops, chat.metrics.answer_tokens.inc)
        del inputs
        self.thread = job.future
        self._leave()
        try:
            writer = Writer.of(self.reply.id, request, chat.engine.fingerprint)
            request.messages.clear()
            await (self._stream if request.stream else self._whole)(job, writer, prompt)
        finally:
            job.stop()

    async def _in(self, pool: ThreadPoolExecutor, call: Callable[..., T], *args: Any) -> T:
        """What `call` returns in a thread of `pool`."""
        self.thread = future = pool.submit(call, *args)
        return await self._within(asyncio.wrap_future(future))

    async def _whole(self, job: Job, writer: Writer, prompt: int) -> None:
        pieces: list[str] = []
        async for event in self._events(job):
            if isinstance(event, End):
                await self.reply.whole(writer.completion("".join(pieces), event.finish, Usage(prompt, event.tokens)))
            else:
                pieces.append(event)

    async def _stream(self, job: Job, writer: Writer, prompt: int) -> None:
        begun = False
        async for event in self._events(job):
            if not begun:  # only now, so that what goes wrong before the first text has a status of its own
                begun = True
                await self.reply.stream()
                await self.reply.part(writer.chunk({"role": "assistant", "content": ""}))
            if isinstance(event, End):
                await self.reply.part(writer.end(event.finish, Usage(prompt, event.tokens)))
                await self.reply.close()
            else:
                await self.reply.part(writer.chunk({"content": event}))

    async def _events(self, job: Job) -> AsyncIterator[str | End]:
        """Pieces of text, and an End. Raises what ended the answer otherwise, and Refusal (504) at the deadline."""
        first = True
        while True:
            event = await self._within(job.events.get())
            if isinstance(event, Exception):
                raise event
            if first:
                first = False
                self.chat.metrics.first.observe(time.perf_counter() - self.begun)
            yield event
            if isinstance(event, End):
                return

    async def _within(self, what: Awaitable[T]) -> T:
        """The result of `what`. Raises Refusal (504) at the deadline."""
        late = asyncio.timeout_at(self.deadline)
        try:
            async with late:
                return await what
        except TimeoutError as error:
            if not late.expired():
                raise
            raise Refusal(504, f"not answered within {self.chat.limits.seconds:g} s, the limit of this server; ask for fewer tokens",
                          code="timeout") from error  # fmt: skip
