"""What a client is told when it gets no answer: OpenAI's form of an error."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.errors import LightVLMError

KINDS = {429: "rate_limit_error", 500: "server_error", 503: "server_error", 504: "server_error"}


class Refusal(LightVLMError):
    """A request that is not answered, with the HTTP status that says so; `retry_after` in seconds, where trying again may help."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry_after: float = 0) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(max(1, round(self.retry_after)))} if self.retry_after else {}
