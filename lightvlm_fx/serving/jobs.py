"""Answers in threads of their own: in the order they were asked for, a few at once, each of which can be stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lightvlm_fx.errors import InputError
from lightvlm_fx.serving.engine import ServerEngine
from lightvlm_fx.serving.problems import Refusal
from lightvlm_fx.serving.text import AnswerText

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class End:
    """An answer is complete."""

    finish: str  # "stop" or "length"
    tokens: int


class Stopped(Exception):
    """Nobody waits for this answer any more, or it has said a string that ends it."""


class Job:
    """One answer. `events` gets its pieces of text, and last an End or the exception that ended it."""

    def __init__(
        self, engine: ServerEngine, inputs: dict[str, Any], options: dict[str, Any], stop: list[str], put: Callable[[], None]
    ) -> None:
        self.engine, self.inputs, self.options, self._count = engine, inputs, options, put
        self.text = AnswerText(engine.decode, stop)
        self.events: asyncio.Queue[str | End | Exception] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.tokens, self.last = 0, -1
        self.future: Future[None] | None = None
        self._stop = False

    def stop(self) -> None:
        """End at the next token, or before the first. An answer that is complete is left as it is."""
        self._stop = True
        if self.future is not None:
            self.future.cancel()

    def run(self) -> None:
        """Answer; for the thread that does it."""
        try:
            if self._stop:
                return
            self.engine.answer(self.inputs, self.options, self._take)
            self._end("stop" if self.last in self.engine.ends else "length")
        except Stopped:
            if self.text.stopped:
                self._end("stop")
        except Exception as error:  # whatever it is, who waits has to hear of it
            self._tell(error)
        finally:
            self.inputs = {}  # pictures are large, and a client may take its time

    def _take(self, token: int) -> None:
        if self._stop:
            raise Stopped
        self.tokens, self.last = self.tokens + 1, token
        self._count()
        if piece := self.text.add(token):
            self._tell(piece)
        if self.text.stopped:
            raise Stopped

    def _end(self, finish: str) -> None:
        if rest := self.text.end():
            self._tell(rest)
        self._tell(End("stop" if self.text.stopped else finish, self.tokens))

    def _tell(self, event: str | End | Exception) -> None:
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Runner:
    """Threads that answer, `parallel` of them."""

    def __init__(self, engine: ServerEngine, parallel: int) -> None:
        self.engine, self.running = engine, 0
        self._pool = ThreadPoolExecutor(parallel, "answer")
        self._jobs: set[Job] = set()

    def start(
        self, inputs: dict[str, Any], options: dict[str, Any], stop: list[str], put: Callable[[], None]
    ) -> Job:
        """A job that answers as soon as a thread is free. `put` is called at every token."""
        job = Job(self.engine, inputs, options, stop, put)
        self._jobs.add(job)
        job.future = self._pool.submit(self._run, job)
        job.future.add_done_callback(lambda _: self._jobs.discard(job))
        return job

    def _run(self, job: Job) -> None:
        self.running += 1  # read for metrics alone
        try:
            job.run()
        finally:
            self.running -= 1

    def close(self) -> None:
        """Stop all answers, and wait until their threads have."""
        for job in list(self._jobs):
            job.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)


def refusal_of(error: Exception) -> Refusal:
    """What a client hears of an exception: all of its own mistakes, nothing of ours."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal(400, str(error))
    log.error("a request failed", exc_info=error)
    return Refusal(500, "the server failed to answer; its log says why")
