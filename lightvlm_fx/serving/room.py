"""How long an answer may be, and what is told where a prompt leaves no room for one."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.serving.engine import ServerEngine
from lightvlm_fx.serving.limits import Limits
from lightvlm_fx.serving.problems import Refusal
from lightvlm_fx.serving.protocol import Request

CHARACTERS = 32  # of text a token, at most: longer texts are refused before they are tokenized


def check_text(chat: list[dict[str, Any]], limits: Limits) -> None:
    """Raises Refusal (400) where a chat, as templates take it, has more text than its limit of tokens can be."""
    characters = sum(len(part.get("text", "")) + 1 for message in chat for part in message["content"])
    if characters > CHARACTERS * limits.prompt_tokens:
        raise _too_long(f"{characters} characters", limits.prompt_tokens)


def options_of(request: Request, prompt: int, engine: ServerEngine, limits: Limits) -> dict[str, Any]:
    """Arguments of generate() for a prompt of so many tokens. Raises Refusal (400) where there is not room for what is asked."""
    if prompt > limits.prompt_tokens:
        raise _too_long(f"{prompt} tokens", limits.prompt_tokens)
    room = [limits.tokens, engine.longest, None if engine.context is None else engine.context - prompt]
    most = min(n for n in room if n is not None)
    if most < 1:
        raise _too_long(f"{prompt} tokens", int(engine.context or 0))
    new = request.wanted if request.wanted is not None else min(engine.usual or most, most)
    if new > most:
        raise Refusal(400, f"an answer of {new} tokens is asked for, at most {most} are given to this prompt", param="max_tokens")
    if request.min_tokens > new:
        raise Refusal(400, f"min_tokens is {request.min_tokens}, above the {new} tokens of the answer", param="min_tokens")
    if request.seed is not None and engine.seeds_alone and limits.parallel > 1:
        raise Refusal(400, "a seed repeats nothing where several answers share one generator; leave it out, or start the server "
                           "with --parallel 1", param="seed", code="unsupported_parameter")  # fmt: skip
    return {"max_new_tokens": new} | ({"min_new_tokens": request.min_tokens} if request.min_tokens else {}) | request.sampling()


def _too_long(found: str, most: int) -> Refusal:
    return Refusal(400, f"the prompt has {found}, this server takes {most} tokens; send less text, or fewer or smaller pictures",
                   param="messages", code="context_length_exceeded")  # fmt: skip
