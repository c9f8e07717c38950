"""What the server counts, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self, inside: Callable[[], int], running: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("lightvlm_requests", "Chat completions by status, or `left`.", ["status"], registry=registry)
        self.seconds = Histogram("lightvlm_request_seconds", "From a request to the end of its answer.", buckets=SECONDS, registry=registry)
        self.first = Histogram("lightvlm_first_text_seconds", "From a request to its first text.", buckets=SECONDS, registry=registry)
        self.prompt_tokens = Counter("lightvlm_prompt_tokens", "Tokens of prompts, with those of pictures.", registry=registry)
        self.answer_tokens = Counter("lightvlm_answer_tokens", "Tokens that were generated.", registry=registry)
        self.pictures = Counter("lightvlm_pictures", "Pictures in prompts.", registry=registry)
        self.picture_bytes = Counter("lightvlm_picture_bytes", "Their bytes as they came.", registry=registry)
        Gauge("lightvlm_requests_inside", "Requests that are read, wait or are answered.", registry=registry).set_function(inside)
        Gauge("lightvlm_answers_running", "Answers that a thread works on.", registry=registry).set_function(running)

    def text(self) -> bytes:
        return generate_latest(self.registry)
