"""The server over HTTP, with an engine of letters: limits, errors, clients that are slow, leave, or send too much."""

import base64
import io
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from served import HELLO, Letters, ask, connect, metric, picture, served, until

from lightvlm_fx.errors import InputError
from lightvlm_fx.serving.limits import Limits
from lightvlm_fx.serving.sources import Sources

for package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(package)


JSON = {"Content-Type": "application/json"}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


def png(width=8, height=8):
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


def data_url(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def url():
    with served(Letters(), Limits(tokens=100, prompt_tokens=1000, pictures=2, picture_pixels=1000), Sources()) as address:
        yield address


def events(url, body):
    """The events of a stream."""
    status, headers, text = ask(url, body | {"stream": True})
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *lines, rest = text.split("\n\n")
    assert rest == ""
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_answer(url):
    status, headers, said = ask(url, picture(data_url(png()), max_tokens=3))
    assert status == 200
    assert headers["x-request-id"] == said["id"]
    assert said["choices"][0] == {
        "index": 0, "message": {"role": "assistant", "content": "abc", "refusal": None}, "logprobs": None, "finish_reason": "length",
    }  # fmt: skip
    assert said["usage"] == {"prompt_tokens": 112, "completion_tokens": 3, "total_tokens": 115}
    assert (said["object"], said["model"], said["system_fingerprint"]) == ("chat.completion", "letters", "0123")


def test_a_stream(url):
    found = events(url, HELLO | {"stream_options": {"include_usage": True}})
    assert [c["choices"][0]["delta"] for c in found[:-1]] == [
        {"role": "assistant", "content": ""}, *({"content": letter} for letter in "abcde"), {},
    ]  # fmt: skip
    assert found[-2]["choices"][0]["finish_reason"] == "length"
    assert (found[-1]["choices"], found[-1]["usage"]["completion_tokens"]) == ([], 5)
    assert len({c["id"] for c in found}) == 1
    assert "usage" not in events(url, HELLO)[0]


def test_stop_strings(url):
    assert ask(url, HELLO | {"stop": "d"})[2]["choices"][0] | {"message": ""} == {
        "index": 0, "message": "", "logprobs": None, "finish_reason": "stop",
    }  # fmt: skip
    said = events(url, HELLO | {"stop": ["xyz", "cd"], "max_tokens": 50})
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in said) == "ab"
    assert said[-1]["choices"][0]["finish_reason"] == "stop"


def test_models_and_health(url):
    assert [m["id"] for m in ask(url, None, "/v1/models")[2]["data"]] == ["letters"]
    assert ask(url, None, "/v1/models/letters")[2]["schedule"] == "none"
    assert ask(url, None, "/health")[2] == {"status": "ok", "model": "letters", "inside": 0, "running": 0}


AT = "messages[0].content[0].image_url.url"  # where the only picture stands
CASES = [
    (b"{", 400, None, None, "the body is not JSON"),
    (HELLO | {"n": 2}, 400, "n", "unsupported_parameter", "n is not supported"),
    (HELLO | {"model": "gpt"}, 404, "model", "model_not_found", "no model named 'gpt'; this server has 'letters'"),
    (HELLO | {"max_tokens": 101}, 400, "max_tokens", None, "an answer of 101 tokens is asked for, at most 100 are given"),
    (HELLO | {"min_tokens": 9}, 400, "min_tokens", None, "min_tokens is 9, above the 5"),
    (picture(data_url(png()), "x" * 901), 400, "messages", "context_length_exceeded", "the prompt has 1001 tokens, this server takes 1000"),
    (picture(data_url(png()), "x" * 10**6), 400, "messages", "context_length_exceeded", "the prompt has 1000002 characters"),
    (picture(data_url(b"no picture")), 400, None, None, f"{AT}: not a picture that Pillow can read"),
    (picture("data:image/png;base64,!"), 400, AT, "invalid_base64", "holds no base64"),
    (picture(data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")), 400, None, None, "not a picture"),
    (picture("file:///etc/passwd"), 400, AT, "invalid_image_url", "must come as a data: URL"),
    (picture("/etc/passwd"), 400, AT, "invalid_image_url", "must come as a data: URL"),
    (picture("http://127.0.0.1:1/x.png"), 400, AT, "invalid_image_url", "not at a public address"),
    (picture("http://169.254.169.254/latest/meta-data"), 400, AT, "invalid_image_url", "not at a public"),
    (picture(data_url(png(40, 26))), 413, AT, "picture_too_large", "40 x 26 pixels, above the limit of 1000"),
    ({"model": "letters", "messages": picture(data_url(png()))["messages"] * 3}, 400, "messages", None, "holds 3 pictures"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "param", "code", "message"), CASES)
def test_refuses_in_openai_s_form(url, body, status, param, code, message, stream):
    found, headers, said = ask(url, body if isinstance(body, bytes) else body | {"stream": stream})
    assert (found, headers["content-type"]) == (status, "application/json")
    assert message in said["error"].pop("message")
    assert said["error"] == {"type": "invalid_request_error", "param": param, "code": code}


@pytest.mark.parametrize(("path", "body", "status"), [("/v1/nothing", None, 404), ("/v1/models/x", None, 404),
                                                      ("/v1/chat/completions", None, 405), ("/health", HELLO, 405)])  # fmt: skip
def test_refuses_other_paths_and_methods(url, path, body, status):
    found, _, said = ask(url, body, path)
    assert (found, said["error"]["type"]) == (status, "invalid_request_error")


def test_a_picture_of_50_megabytes_is_refused():
    """By the limit of a body, and where that is higher by that of a picture; and the server answers on."""
    large = json.dumps(picture(data_url(bytes(50_000_000)))).encode()
    with served(Letters()) as url:
        status, headers, said = ask(url, large)
        assert (status, said["error"]["code"], headers["connection"]) == (413, "request_too_large", "close")
        assert ask(url, HELLO)[0] == 200
    with served(Letters(), Limits(request_bytes=10**8)) as url:
        status, _, said = ask(url, large)
        assert (status, said["error"]["code"]) == (413, "picture_too_large")
        assert "more than 20971520 bytes" in said["error"]["message"]
        assert ask(url, HELLO)[0] == 200


def test_a_body_without_a_length_is_refused_too():
    with served(Letters(), Limits(request_bytes=10**5)) as url:
        connection = connect(url)
        connection.request("POST", "/v1/chat/completions", iter([bytes(10**5)] * 5), JSON, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()


def test_a_body_beyond_all_measure_is_not_even_read():
    with served(Letters(), Limits(request_bytes=10**5)) as url:
        connection = connect(url)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Length", str(10**12))
        connection.putheader("Content-Type", "application/json")
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()


def test_a_browser_is_not_sent_here_by_another_site(url):
    """Without a question first, pages of other sites can send text, not JSON."""
    connection = connect(url)
    connection.request("POST", "/v1/chat/completions", json.dumps(HELLO), {"Content-Type": "text/plain"})
    assert connection.getresponse().status == 415
    connection.close()


def test_requests_a_minute():
    with served(Letters(), Limits(per_minute=3)) as url:
        assert [ask(url, HELLO)[0] for _ in range(4)] == [200, 200, 200, 429]
        _, headers, said = ask(url, HELLO)
        assert 1 <= int(headers["retry-after"]) <= 20
        assert (said["error"]["type"], said["error"]["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert ask(url, None, "/health")[0] == 200


def at_once(count, call):
    """What `call(number)` returns in `count` threads."""
    out = {}

    def one(number):
        out[number] = call(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [out[number] for number in range(count)]


def test_a_full_queue():
    with served(Letters(pause=0.1), Limits(queue=2)) as url:
        found = at_once(8, lambda _: ask(url, HELLO))
        assert sorted(status for status, _, _ in found) == [200] * 3 + [503] * 5
        full = next(said for status, _, said in found if status == 503)
        assert (full["error"]["type"], full["error"]["code"]) == ("server_error", "queue_full")
        assert ask(url, HELLO)[0] == 200
        assert metric(url, 'lightvlm_requests_total{status="503"}') == 5


def test_an_answer_that_takes_too_long():
    engine = Letters(pause=0.05)
    with served(engine, Limits(seconds=0.3)) as url:
        status, _, said = ask(url, HELLO | {"max_tokens": 100})
        assert (status, said["error"]["type"], said["error"]["code"]) == (504, "server_error", "timeout")
        assert until(lambda: ask(url, None, "/health")[2]["inside"] == 0)
        assert engine.said < 20
        _, _, text = ask(url, HELLO | {"max_tokens": 100, "stream": True})
        *_, last, rest = text.split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        assert rest == ""
        assert until(lambda: ask(url, None, "/health")[2]["inside"] == 0)
        assert engine.said < 40


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer(stream):
    engine = Letters(pause=0.05)
    with served(engine, Limits(queue=8)) as url:
        connection = connect(url)
        connection.request("POST", "/v1/chat/completions", json.dumps(HELLO | {"max_tokens": 1000, "stream": stream}), JSON)
        waiting = connect(url)  # one that leaves before its turn
        waiting.request("POST", "/v1/chat/completions", json.dumps(HELLO | {"max_tokens": 1000}), JSON)
        assert until(lambda: engine.said > 3 and ask(url, None, "/health")[2]["inside"] == 2)
        for left in (waiting, connection):
            left.sock.shutdown(socket.SHUT_RDWR)
            left.close()
        assert until(lambda: ask(url, None, "/health")[2] == {"status": "ok", "model": "letters", "inside": 0, "running": 0}, 3)
        assert engine.said < 60
        assert len(engine.options) == 1
        assert metric(url, 'lightvlm_requests_total{status="left"}') == 2
        assert metric(url, "lightvlm_answer_tokens_total") == engine.said - 1  # the last was refused, which ended it


def test_a_client_that_does_not_read_holds_up_nobody():
    """Its answer has 5 MB, which no buffer between takes; others are answered meanwhile, and it is dropped."""
    engine = Letters()
    with served(engine, Limits(tokens=20_000, send_seconds=2)) as url:

        def dropped():
            return metric(url, 'lightvlm_requests_total{status="too slow"}') == 1

        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((urlsplit(url).hostname, urlsplit(url).port))
        body = json.dumps(HELLO | {"max_tokens": 20_000, "stream": True}).encode()
        slow.sendall(HEAD % (len(body), body))
        assert until(lambda: engine.said == 20_000 or dropped(), seconds=60)  # on a busy machine it is dropped before all is said
        begun = time.monotonic()
        assert at_once(8, lambda _: ask(url, HELLO)[2]["choices"][0]["message"]["content"]) == ["abcde"] * 8
        assert time.monotonic() - begun < 5
        assert until(dropped)
        slow.close()


def test_a_client_that_sends_slowly_holds_up_nobody():
    with served(Letters(), Limits(receive_seconds=1)) as url:
        slow = connect(url)
        slow.putrequest("POST", "/v1/chat/completions")
        slow.putheader("Content-Length", "1000")
        slow.putheader("Content-Type", "application/json")
        slow.endheaders()
        slow.send(b"{")
        begun = time.monotonic()
        assert ask(url, HELLO)[0] == 200
        assert time.monotonic() - begun < 0.9
        reply = slow.getresponse()
        assert (reply.status, json.loads(reply.read())["error"]["type"]) == (408, "invalid_request_error")
        slow.close()


def test_a_slow_server_of_pictures_holds_up_nobody():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        from_it = f"http://127.0.0.1:{silent.getsockname()[1]}/x.png"
        with served(Letters(), Limits(fetch_seconds=1), Sources(private=True)) as url:
            slow = []
            waiting = threading.Thread(target=lambda: slow.append(ask(url, picture(from_it))))
            waiting.start()
            assert until(lambda: ask(url, None, "/health")[2]["inside"] == 1)
            assert ask(url, picture(data_url(png())))[0] == 200
            assert slow == []
            waiting.join()
    assert (slow[0][0], slow[0][2]["error"]["code"]) == (400, "invalid_image_url")


@pytest.mark.parametrize(("error", "status", "message"), [
    (InputError("no bucket takes this"), 400, "no bucket takes this"),
    (ValueError("secret"), 500, "the server failed to answer; its log says why"),
])  # fmt: skip
def test_an_engine_that_fails(error, status, message, caplog):
    for at, stream in ((0, False), (0, True), (2, False)):
        with served(Letters(fail=(at, error))) as url:
            found, _, said = ask(url, HELLO | {"stream": stream})
            assert (found, said["error"]["message"]) == (status, message)
    with served(Letters(fail=(2, error))) as url:
        found, _, text = ask(url, HELLO | {"stream": True})
        assert found == 200  # which was said before
        assert json.loads(text.split("\n\n")[-2].removeprefix("data: "))["error"]["message"] == message
        assert "[DONE]" not in text
    assert ("secret" in caplog.text) == (status == 500)


def test_a_seed_is_refused_where_it_repeats_nothing():
    with served(Letters(), Limits(parallel=2)) as url:
        assert ask(url, HELLO | {"seed": 3, "temperature": 1})[2]["error"]["param"] == "seed"
        assert ask(url, HELLO | {"seed": 3, "temperature": 0})[0] == 200
    engine = Letters()
    with served(engine) as url:
        ask(url, HELLO | {"seed": 3, "temperature": 1.0})
    assert engine.options == [{"max_new_tokens": 5, "do_sample": True, "temperature": 1.0, "seed": 3}]


def test_an_answer_may_end_before_the_server_does():
    engine = Letters(pause=0.05)
    found = []
    with served(engine) as url:
        asking = threading.Thread(target=lambda: found.append(ask(url, HELLO | {"max_tokens": 20})))
        asking.start()
        assert until(lambda: engine.said > 2)
    asking.join()
    assert found[0][2]["usage"]["completion_tokens"] == 20


def test_prepared_inputs_are_let_go_when_an_answer_ends():
    """A client that does not read must not hold its pictures."""
    import weakref

    class Watched(Letters):
        def prepare(self, chat, pictures):
            ids = super().prepare(chat, pictures)["input_ids"].view(Array)
            self.alive = weakref.ref(ids)
            return {"input_ids": ids}

    class Array(np.ndarray):
        pass

    engine = Watched()
    with served(engine) as url:
        assert ask(url, HELLO)[0] == 200
        assert until(lambda: engine.alive() is None)
