"""A real HTTP server on loopback that can misbehave in the ways that mirrors do."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html>\n<html><body>Please sign in to use this network.</body></html>"


@dataclass
class Mirror:
    """What a server offers: files by path, and how it behaves.

    behaviour: "good", "missing" (404), "broken" (500), "html" (a page, as text/html), "html_as_gzip" (a page that claims to be
    gzip), "truncated" (closes early), "stalled" (sends some, then nothing), "drip" (a few bytes at a time), "no_ranges".
    """

    files: dict[str, bytes]
    behaviour: str = "good"
    stop_after: int = 1000
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)  # (path, Range header)
    stopped: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    mirror: Mirror

    def do_GET(self) -> None:
        mirror, name = self.mirror, self.path.lstrip("/")
        mirror.requests.append((name, self.headers.get("Range", "")))
        if mirror.behaviour == "broken":
            self.send_error(500)
        elif mirror.behaviour == "missing" or name not in mirror.files:
            self.send_error(404)
        elif mirror.behaviour.startswith("html"):
            kind = "text/html; charset=utf-8" if mirror.behaviour == "html" else "application/gzip"
            self._send(200, PAGE, {"Content-Type": kind})
        else:
            self._send_file(mirror.files[name])

    def _send_file(self, body: bytes) -> None:
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        headers = {"Content-Type": "application/gzip", "ETag": etag}
        wanted = self.headers.get("Range", "")
        if wanted and self.headers.get("If-Range") == etag and self.mirror.behaviour != "no_ranges":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self._send(206, body[start:], headers)
        else:
            self._send(200, body, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        mirror = self.mirror
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if mirror.behaviour == "truncated":
            self.wfile.write(body[: mirror.stop_after])
        elif mirror.behaviour == "stalled":
            self.wfile.write(body[: mirror.stop_after])
            self.wfile.flush()
            mirror.stopped.wait(10)
        elif mirror.behaviour == "drip":
            for byte in body:
                if mirror.stopped.wait(0.05):
                    return
                self.wfile.write(bytes((byte,)))
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `Mirror.requests`; the terminal stays quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves a misbehaving server is what these tests are about."""


@contextmanager
def serving(files: dict[str, bytes], behaviour: str = "good", stop_after: int = 1000) -> Iterator[Mirror]:
    mirror = Mirror(files, behaviour, stop_after)
    server = Server(("127.0.0.1", 0), type("MirrorHandler", (Handler,), {"mirror": mirror}))
    mirror.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield mirror
    finally:
        mirror.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def dead_url() -> str:
    """An address where nobody listens: the port was free a moment ago."""
    server = Server(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    server.server_close()
    return f"http://127.0.0.1:{port}"
