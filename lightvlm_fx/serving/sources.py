"""Where pictures come from: data: URLs, http(s) from public addresses, and what a flag allows beside. Gives bytes, decodes nothing."""

from __future__ import annotations

import base64
import binascii
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urljoin, urlsplit

from lightvlm_fx.serving.addresses import resolve
from lightvlm_fx.serving.problems import Refusal
from lightvlm_fx.version import __version__

HOPS = 3  # redirects that are followed
PIECE = 64 * 1024
PORTS = {"http": 80, "https": 443}
MOVED = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Sources:
    """What a server takes pictures from. `data:` URLs always; http(s) where `remote`; private addresses and `folder` where allowed."""

    remote: bool = True
    private: bool = False
    folder: Path | None = None

    def fetch(self, url: str, most: int, end: float) -> bytes:
        """The bytes that `url` leads to, here before `end`, a time of time.monotonic().

        Raises Refusal: 413 where there are more than `most`, 400 where it is not allowed, or fails.
        """
        scheme = url[:16].partition(":")[0].lower()
        if scheme == "data":
            return _data(url, most)
        if scheme in PORTS and self.remote:
            return self._remote(url, most, end)
        if scheme == "file" and self.folder is not None:
            return _file(url, self.folder, most)
        raise Refusal(400, f"a picture must come as a data: URL{' or from http(s)' if self.remote else ''}, got {url[:40]!r}",
                      code="invalid_image_url")  # fmt: skip

    def _remote(self, url: str, most: int, end: float) -> bytes:
        for _ in range(HOPS + 1):
            parts = _web(url)
            try:
                found = self._get(parts, most, end)
            except (OSError, http.client.HTTPException) as error:
                what = "took too long" if isinstance(error, TimeoutError) else f"failed ({type(error).__name__})"
                raise Refusal(400, f"fetching a picture from {parts.hostname!r} {what}", code="invalid_image_url") from error
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise Refusal(400, f"a picture's URL is redirected more than {HOPS} times", code="invalid_image_url")

    def _get(self, parts: SplitResult, most: int, end: float) -> bytes | str:
        """The bytes at a URL, or where it is redirected to."""
        host, port = str(parts.hostname), parts.port or PORTS[parts.scheme]
        address = resolve(host, port, private=self.private)
        connection = http.client.HTTPConnection(host, port)
        connection.sock = socket.create_connection((address, port), timeout=_left(end))
        try:
            if parts.scheme == "https":
                context = ssl.create_default_context()
                connection.sock = context.wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
            with _within(_left(end), connection.sock):
                if isinstance(connection.sock, ssl.SSLSocket):
                    connection.sock.do_handshake()
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", target, headers={
                    "Host": parts.netloc, "Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": f"lightvlm_fx/{__version__}",
                })  # fmt: skip
                return _body(connection.getresponse(), host, most)
        finally:
            connection.close()


def _left(end: float) -> float:
    """Seconds until `end`. Raises TimeoutError where there are none."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _body(response: http.client.HTTPResponse, host: str, most: int) -> bytes | str:
    to = response.getheader("Location")
    if response.status in MOVED and to:
        return to
    if response.status != 200:
        raise Refusal(400, f"fetching a picture from {host!r} was answered with {response.status}", code="invalid_image_url")
    if (response.length or 0) > most:
        raise too_large(most)
    out = bytearray()
    while piece := response.read(PIECE):
        out += piece
        if len(out) > most:
            raise too_large(most)
    if response.length:  # the connection ended before what was promised
        raise http.client.IncompleteRead(b"")
    return bytes(out)


def too_large(most: int) -> Refusal:
    return Refusal(413, f"a picture has more than {most} bytes, which is this server's limit; scale it down", code="picture_too_large")


@contextmanager
def _within(seconds: float, connection: socket.socket) -> Iterator[None]:
    """A limit of time for all of a connection, whose own is one for every read. Raises TimeoutError."""
    late = threading.Event()

    def end() -> None:
        late.set()
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # it is closed already, or was never open: nothing is left to end
            return

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if late.is_set():
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError


def _web(url: str) -> SplitResult:
    """The parts of an http(s) URL. Raises Refusal (400) where it is none, or holds a name and password."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in PORTS and parts.hostname and "@" not in parts.netloc and (parts.port or 1) > 0
        fine = fine and url.isascii() and url.isprintable() and " " not in url
    except ValueError:  # a port or a bracket that makes no sense
        fine = False
    if not fine:
        raise Refusal(400, f"not the http(s) URL of a picture: {url[:80]!r}", code="invalid_image_url")
    return parts


def _data(url: str, most: int) -> bytes:
    head, comma, text = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise Refusal(400, f"a data: URL is written data:image/png;base64,..., got {url[:40]!r}", code="invalid_image_url")
    if len(text) > 4 * (most // 3 + 1) * (3 if "%" in text else 1):  # %2B is one of its characters
        raise too_large(most)
    try:
        found = base64.b64decode(unquote_to_bytes(text) if "%" in text else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"a data: URL holds no base64: {error}", code="invalid_base64") from error
    if len(found) > most:
        raise too_large(most)
    return found


def _file(url: str, folder: Path, most: int) -> bytes:
    """The file at a file: URL. Raises Refusal (400) where it is none in `folder`, in the same words whether it exists or not."""
    refusal = Refusal(400, "a file: URL must lead to a file in the folder that this server allows", code="invalid_image_url")
    try:
        path = Path(unquote(urlsplit(url).path)).resolve()
        if urlsplit(url).netloc not in ("", "localhost") or not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise refusal
        with path.open("rb") as file:
            found = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise refusal from error
    if len(found) > most:
        raise too_large(most)
    return found
