"""OpenAI's chat completions: what a request may say, and the shapes of answers. What is not done is refused, never left out silently."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lightvlm_fx.errors import shown
from lightvlm_fx.serving.problems import Refusal

# What may stand in a request and changes no answer.
WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
# What is not done, and the values that do not ask for it.
NOT_DONE: dict[str, tuple[Any, ...]] = {
    "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},),
    "tools": (), "tool_choice": ("none", "auto"), "functions": (), "function_call": ("none", "auto"), "modalities": (["text"],),
    "response_format": ({"type": "text"},), "audio": (), "prediction": (), "reasoning_effort": (), "verbosity": (),
    "web_search_options": (),
}  # fmt: skip
NOT_DONE_IN_MESSAGES: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("tool_calls", "function_call", "audio", "refusal", "annotations", "tool_call_id"), ()
)
MOST_VALUES = 20_000  # in a body: checking more would hold up every other thread
GREEDY = 0.01  # temperatures below leave one token anyway, and logits divided by them overflow


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Url(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"  # the schedule says how many tokens a picture has


class PicturePart(_Strict):
    type: Literal["image_url"]
    image_url: Url


Part = Annotated[TextPart | PicturePart, Field(discriminator="type")]


Stop = Annotated[str, Field(max_length=256)]


def _as_part(content: Any) -> Any:
    """A message that is a string has one part."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_part)]
    name: str | None = None


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False  # without effect


class Request(_Strict):
    """A request, as far as it is done."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Annotated[list[Stop], Field(max_length=16), BeforeValidator(_as_list)] = []
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool = False
    stream_options: StreamOptions | None = None
    # not OpenAI's, but of the servers that people have
    min_tokens: int = Field(0, ge=0, lt=2**31)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    repetition_penalty: float | None = Field(None, gt=0, le=100)

    @property
    def wanted(self) -> int | None:
        """The longest answer that is asked for."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def stops(self) -> list[str]:
        return [s for s in self.stop if s]

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> dict[str, Any]:
        """Arguments of generate(). Without a temperature, and with a top_p of 1 or none, the model's own way of choosing."""
        given: dict[str, Any] = {"top_k": self.top_k, "repetition_penalty": self.repetition_penalty}
        if self.temperature is not None and self.temperature < GREEDY:
            given["do_sample"] = False
        elif self.temperature is not None or (self.top_p is not None and self.top_p < 1):
            given |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return {name: value for name, value in given.items() if value is not None}

    def chat(self) -> list[dict[str, Any]]:
        """The messages as chat templates take them."""
        out = []
        for message in self.messages:
            content = [{"type": "text", "text": p.text} if isinstance(p, TextPart) else {"type": "image"} for p in message.content]
            out.append({"role": "system" if message.role == "developer" else message.role, "content": content})
        return out

    def pictures(self) -> list[tuple[str, str]]:
        """Where each picture stands in the request, and its URL, in the order of the chat's parts."""
        return [
            (f"messages[{m}].content[{p}].image_url.url", part.image_url.url)
            for m, message in enumerate(self.messages)
            for p, part in enumerate(message.content) if isinstance(part, PicturePart)
        ]  # fmt: skip


def read(body: bytes) -> Request:
    """The request in a body. Raises Refusal (400) naming the first field that is wrong, unknown or not done."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise Refusal(400, f"the body must be a JSON object, got {type(data).__name__}")
    if _more_values(data, MOST_VALUES):
        raise Refusal(400, f"the body holds more than {MOST_VALUES} values; send fewer messages or parts")
    data = {name: value for name, value in _done(data, NOT_DONE, "").items() if name not in WITHOUT_EFFECT}
    if isinstance(data.get("messages"), list):
        data["messages"] = [
            _done(m, NOT_DONE_IN_MESSAGES, f"messages[{at}].") if isinstance(m, dict) else m for at, m in enumerate(data["messages"])
        ]
    try:
        request = Request.model_validate(data)
    except ValidationError as error:
        raise _refusal(error) from error
    if request.stream_options is not None and not request.stream:
        raise Refusal(400, "stream_options is for requests with stream: true", param="stream_options")
    if request.seed is not None and not request.sampling().get("do_sample"):
        request.seed = None  # a greedy answer is the same with every seed
    return request


def _more_values(data: Any, most: int) -> bool:
    """Whether there are more than `most` values in `data`, at all depths."""
    left, count = [data], 0
    while left and count <= most:
        value = left.pop()
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        count += len(inner)
        left += [v for v in inner if isinstance(v, dict | list)]
    return count > most


def _done(data: dict[str, Any], not_done: dict[str, tuple[Any, ...]], where: str) -> dict[str, Any]:
    """`data` without null, and without fields that ask for nothing. Raises Refusal (400) for what is not done."""
    for name, neutral in not_done.items():
        value = data.get(name)
        if value not in (None, [], {}) and value not in neutral:
            raise Refusal(400, f"{where}{name} is not supported, got {shown(value, 80)}; leave it out",
                          param=f"{where}{name}", code="unsupported_parameter")  # fmt: skip
    return {name: value for name, value in data.items() if value is not None and name not in not_done}


def _refusal(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False)[0]
    steps = list(first["loc"])
    if len(steps) > 4 and steps[2] == "content":  # messages, number, content, number, and then the kind of part, which is no field
        del steps[4]
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"{param}: this server knows no such field; leave it out", param=param, code="unknown_parameter")
    got = "" if first["type"] == "missing" else f", got {shown(first['input'], 80)}"
    return Refusal(400, f"{param}: {first['msg']}{got}", param=param)


@dataclass(frozen=True)
class Usage:
    """Tokens of a prompt and of its answer."""

    prompt: int
    answer: int

    def body(self) -> dict[str, int]:
        return {"prompt_tokens": self.prompt, "completion_tokens": self.answer, "total_tokens": self.prompt + self.answer}


@dataclass(frozen=True)
class Writer:
    """The shapes of one answer."""

    id: str
    model: str
    fingerprint: str
    with_usage: bool = False
    created: int = 0

    @staticmethod
    def of(id: str, request: Request, fingerprint: str) -> Writer:  # noqa: A002  (the protocol's word)
        return Writer(id, request.model, fingerprint, request.with_usage, int(time.time()))

    def completion(self, text: str, finish: str, usage: Usage) -> dict[str, Any]:
        choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": None, "finish_reason": finish}
        return self._body("chat.completion", [choice]) | {"usage": usage.body()}

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], None)

    def end(self, finish: str, usage: Usage) -> bytes:
        """The last parts of a stream."""
        last = self._chunk([], usage.body()) if self.with_usage else b""
        return self.chunk({}, finish) + last + b"data: [DONE]\n\n"

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        return event(self._body("chat.completion.chunk", choices) | ({"usage": usage} if self.with_usage else {}))

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "system_fingerprint": self.fingerprint,
                "choices": choices}  # fmt: skip


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"
