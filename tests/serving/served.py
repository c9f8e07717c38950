"""What the tests of the server share: a server in a thread, raw requests, and an engine that takes its time."""

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np

HELLO = {"model": "letters", "messages": [{"role": "user", "content": "hello"}]}


@contextmanager
def served(engine, limits=None, sources=None):
    """The address of a server that answers from `engine`."""
    import uvicorn

    from lightvlm_fx.serving.app import build

    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(build(engine, limits, sources), log_level="warning", lifespan="on", timeout_graceful_shutdown=10)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def connect(url):
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)


def ask(url, body, path="/v1/chat/completions"):
    """Status, headers, and JSON of the answer to a POST of `body` (bytes, or what becomes JSON); to a GET without."""
    connection = connect(url)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("GET" if data is None else "POST", path, data, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, reply.headers, json.loads(text) if reply.headers["content-type"] == "application/json" else text.decode()


def picture(url, text="what is it ?", model="letters", **more):
    """A request about one picture."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}]} | more


def metric(url, name):
    """A number of /metrics."""
    lines = ask(url, None, "/metrics")[2].splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


def until(true, seconds=10):
    """Wait until `true()`; whether it came."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


class Letters:
    """Answers a, b, c, ... with a pause before each; a prompt has a token for each character, a picture a hundred."""

    name, fingerprint, about = "letters", "0123", {"schedule": "none"}
    ends, usual, longest, context, pad, rows, seeds_alone = frozenset([0]), 5, None, 100_000, 0, None, True

    def __init__(self, pause=0.0, fail=None):
        self.pause, self.fail, self.said, self.options = pause, fail, 0, []

    def prepare(self, chat, pictures):
        text = "".join(part.get("text", "") for message in chat for part in message["content"])
        return {"input_ids": np.zeros((1, len(text) + 100 * len(pictures)), np.int64)}

    def decode(self, tokens):
        return "".join(" " if token == 1 else chr(token) for token in tokens)

    def answer(self, inputs, options, put):
        self.options.append(options)
        for at in range(options["max_new_tokens"]):
            if self.fail and at == self.fail[0]:
                raise self.fail[1]
            time.sleep(self.pause)
            self.said += 1
            put(97 + at % 26)
