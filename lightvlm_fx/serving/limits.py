"""How much a server gives to one client, and to all."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lightvlm_fx.errors import InputError

MIB = 2**20
UNLIMITED = ("per_minute", "queue")  # may be 0


@dataclass(frozen=True)
class Limits:
    """What a request may be and how long it may take. Every number but `per_minute` (no limit) and `queue` is above 0."""

    tokens: int = 1024  # of an answer
    prompt_tokens: int = 8192  # with those of the pictures
    pictures: int = 8  # of a request
    picture_bytes: int = 20 * MIB
    picture_pixels: int = 50_000_000
    request_bytes: int = 32 * MIB  # of the body, and of the pictures that are fetched for it
    per_minute: int = 0  # requests of one address
    parallel: int = 1  # answers at once
    queue: int = 32  # requests that wait beside them
    seconds: float = 300  # from a request to the end of its answer
    receive_seconds: float = 30  # until a request's body is here
    fetch_seconds: float = 20  # for all pictures of a request that come from elsewhere
    send_seconds: float = 30  # until a client takes the next part of its answer

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name not in UNLIMITED):
                raise InputError(f"the limit {field.name} must be above 0, got {value}")
