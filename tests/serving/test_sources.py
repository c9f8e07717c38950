"""Pictures come from where they may, in the size and time they may."""

import base64
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest

from lightvlm_fx.serving import addresses, sources
from lightvlm_fx.serving.problems import Refusal
from lightvlm_fx.serving.sources import Sources

DATA = bytes(range(256)) * 8


def fetch(allowed, url, most):
    return allowed.fetch(url, most, time.monotonic() + 1)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"])
def test_public(address):
    assert addresses.is_public(address)


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.2.1",
    "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1",
    "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:80ff:fffe",
])  # fmt: skip
def test_not_public(address):
    assert not addresses.is_public(address)


def data_url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_data():
    assert fetch(Sources(remote=False), data_url(DATA), len(DATA)) == DATA
    assert fetch(Sources(), "DATA:;BASE64,QUJD", 3) == b"ABC"
    assert fetch(Sources(), "data:image/png;base64,%2B%2F8%3D", 2) == b"\xfb\xff"


def status(call, *args):
    with pytest.raises(Refusal) as caught:
        call(*args)
    return caught.value.status


@pytest.mark.parametrize(("url", "message"), [
    ("data:image/png,abc", "is written data:image/png;base64"), ("data:image/png;base64", "is written"), ("data:;base64,a b", "no base64"),
    ("data:;base64,QUJ", "no base64"), ("data:;base64,é", "no base64"), ("ftp://example.org/x", "must come as a data: URL or from http"),
    ("file:///etc/hostname", "must come as"), ("/etc/hostname", "must come as"), ("etc/hostname", "must come as"), ("", "must come as"),
    ("http://", "not the http"), ("http://a:b@example.org/", "not the http"), ("http://example.org:99999/", "not the http"),
    ("http://exa mple.org/", "not the http"), ("http://example.org/\r\nX: y", "not the http"), ("http://[::1/", "not the http"),
    ("http://no-such-host.invalid/", "is not known"),
])  # fmt: skip
def test_refuses_urls(url, message):
    with pytest.raises(Refusal, match=message) as caught:
        fetch(Sources(), url, 10**6)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "0x7f.1", "127.1", "169.254.169.254", "10.0.0.1"]
)
def test_refuses_addresses_that_are_not_public(host):
    with pytest.raises(Refusal, match=r"not at a public address|is not known"):
        fetch(Sources(), f"http://{host}:1/x.png", 10**6)


def test_refuses_all_that_is_remote_where_it_is_switched_off():
    with pytest.raises(Refusal, match=r"must come as a data: URL, got 'http://example\.org/'"):
        fetch(Sources(remote=False), "http://example.org/", 10)


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Silent."""

    def do_GET(self):
        kind, _, argument = self.path[1:].partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", argument)
            self.end_headers()
        elif kind == "status":
            self.send_error(int(argument))
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(65536))
            except OSError:
                return
        elif kind == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return
        elif kind == "short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA)


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


ALLOWED = Sources(private=True)


def test_remote(site):
    assert fetch(ALLOWED, f"{site}/x.png?a=b", len(DATA)) == DATA
    assert fetch(ALLOWED, f"{site}/to/{site}/to//x.png", len(DATA)) == DATA


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate")
def test_https_with_a_certificate_that_is_trusted_for_the_name(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    call = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2"]
    subprocess.run([*call, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(Refusal, match=r"failed \(SSLCertVerificationError"):
            fetch(ALLOWED, f"https://localhost:{server.server_port}/x.png", 10**6)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(ALLOWED, f"https://localhost:{server.server_port}/x.png", 10**6) == DATA
        with pytest.raises(Refusal, match=r"failed \(SSLCertVerificationError"):
            fetch(ALLOWED, f"https://127.0.0.1:{server.server_port}/x.png", 10**6)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_remote_limits(site):
    assert status(fetch, ALLOWED, f"{site}/x.png", len(DATA) - 1) == 413
    assert status(fetch, ALLOWED, f"{site}/endless", 10**6) == 413


@pytest.mark.parametrize(("path", "message"), [
    ("status/404", "was answered with 404"), ("short", "failed .IncompleteRead"), ("to/ftp://example.org/", "not the http"),
    ("to/file:///etc/hostname", "not the http"), ("drip", "took too long"),
])  # fmt: skip
def test_refuses_what_does_not_come(site, path, message):
    begun = time.monotonic()
    with pytest.raises(Refusal, match=message) as caught:
        fetch(ALLOWED, f"{site}/{path}", 10**6)
    assert caught.value.status == 400
    assert time.monotonic() - begun < 3


def test_follows_few_redirects(site):
    with pytest.raises(Refusal, match="redirected more than 3 times"):
        fetch(ALLOWED, f"{site}/to/" * 5 + "x.png", 10**6)


def test_a_redirect_to_a_private_address_is_refused(site, monkeypatch):
    """The first hop is taken for public; the second leads to another name of the same machine."""
    real = addresses.resolve
    monkeypatch.setattr(sources, "resolve", lambda host, port, *, private: real(host, port, private=host == "127.0.0.1"))
    with pytest.raises(Refusal, match="'localhost' of a picture is not at a public address"):
        fetch(Sources(), f"{site}/to/{site.replace('127.0.0.1', 'localhost')}/x.png", 10**6)


def test_a_name_with_one_private_address_is_refused(monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    with pytest.raises(Refusal, match="not at a public address"):
        addresses.resolve("example.org", 80, private=False)


def test_files(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a b.png").write_bytes(DATA)
    (inside / "link.png").symlink_to(outside / "a b.png")
    allowed = Sources(folder=inside)
    assert fetch(allowed, (inside / "a b.png").as_uri(), len(DATA)) == DATA
    assert status(fetch, allowed, (inside / "a b.png").as_uri(), len(DATA) - 1) == 413
    said = set()
    for url in (
        (outside / "a b.png").as_uri(), (outside / "none.png").as_uri(), (inside / "none.png").as_uri(), (inside / "link.png").as_uri(),
        inside.as_uri(), inside.as_uri() + "/../out/a%20b.png", f"file://other{inside}/a%20b.png", "file:relative", "file:///%00",
    ):  # fmt: skip
        with pytest.raises(Refusal) as caught:
            fetch(allowed, url, 10**6)
        said.add((caught.value.status, str(caught.value)))
    assert said == {(400, "a file: URL must lead to a file in the folder that this server allows")}
