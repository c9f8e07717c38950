"""What servers and batches ask of whatever answers, and how tokens come out of generate() one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from PIL import Image

Put = Callable[[int], None]


class ServerEngine(Protocol):
    """A model or an artifact. `prepare` is called by one thread at a time, `answer` by several."""

    name: str
    fingerprint: str  # of its schedule
    about: dict[str, Any]  # what /v1/models says beside the name
    ends: frozenset[int]  # tokens that end an answer
    usual: int | None  # longest answer, where a request does not say
    longest: int | None  # longest answer that there is room for
    context: int | None  # tokens of a prompt with its answer
    pad: int  # token that fills short rows of a batch
    rows: int | None  # prompts that `generate` takes at once
    seeds_alone: bool  # a seed makes an answer repeatable only where one is given at a time

    def prepare(self, chat: list[dict[str, Any]], pictures: list[Image.Image]) -> dict[str, Any]:
        """What `answer` takes. Raises InputError."""

    def decode(self, tokens: list[int]) -> str:
        """The text of some tokens, without special ones. For several threads."""

    def answer(self, inputs: dict[str, Any], options: dict[str, Any], put: Put) -> None:
        """Call `put` with every token of the answer, under `options` of generate(). What `put` raises ends it, and comes out again.

        Raises InputError for inputs that cannot be answered.
        """

    def generate(self, inputs: dict[str, Any], **options: Any) -> Any:
        """Prompts and answers [B, S + new] of inputs of several rows, padded on the left. Raises InputError likewise."""


class Tokens:
    """A streamer of transformers' generate() and of an artifact's, for one row: calls `put` with each new token."""

    def __init__(self, put: Put) -> None:
        self._put, self._prompt = put, True

    def put(self, value: Any) -> None:
        if self._prompt:  # comes first, as it was given
            self._prompt = False
            return
        [token] = value.tolist()
        self._put(token)

    def end(self) -> None:
        """Nothing is held back."""
