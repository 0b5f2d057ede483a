"""A small HTTP server of a folder's files, which is as slow and as unreliable as a test wants."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Fault = str
"""`drop`: the connection ends in the middle of the content; `truncate`: half of it comes, as if it were all;
`hang`: no answer comes; a number of three digits: that answer, with no content."""


@dataclass
class Server:
    """What the server does, which may be changed while it runs."""

    folder: Path
    address: str = ""
    latency: float = 0.0
    """Seconds before each answer."""
    before: Callable[[], object] = lambda: None
    """Called before each answer, which is given when it returns."""
    ranges: bool = True
    """Whether parts of files can be asked for."""
    faults: list[Fault] = field(default_factory=list)
    """What becomes of the next requests for content, one after the other."""
    always: Fault | None = None
    """What becomes of all of them after these."""
    requests: list[str] = field(default_factory=list)
    """The ranges that were asked for, `GET /a.tar bytes=0-511`."""
    hanging: threading.Event = field(default_factory=threading.Event)
    """Set when the server ends: what hangs ends too."""

    def fault(self) -> Fault | None:
        """What becomes of a request that has come."""
        return self.faults.pop(0) if self.faults else self.always


@contextlib.contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Server]:
    """Serve the files of a folder while the block runs."""
    server = Server(folder, **options)

    class Handler(_Handler):
        state = server

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.address = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        server.hanging.set()
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer(lambda content: None)

    def do_GET(self) -> None:
        self.state.requests.append(f"GET {self.path} {self.headers.get('Range', '')}".strip())
        self._answer(self.wfile.write, self.state.fault())

    def _answer(self, write: Callable[[bytes], object], fault: Fault | None = None) -> None:
        time.sleep(self.state.latency)
        self.state.before()
        if fault == "hang":
            self.state.hanging.wait(30)
        path = self.state.folder / self.path.partition("?")[0].lstrip("/")
        if (fault or "").isdigit() or not path.is_file():
            self.send_response(int(fault) if fault and fault.isdigit() else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size, status = path.stat().st_size, 200
        first, last = 0, size - 1
        if self.state.ranges and (asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            first, last, status = int(asked[1]), min(int(asked[2]), size - 1), 206
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last - first + 1)
        content = content[: len(content) // 2] if fault == "truncate" else content
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        mark = hashlib.sha256(f"{size} {path.stat().st_mtime_ns}".encode()).hexdigest()[:16]
        self.send_header("ETag", f'"{mark}"')
        self.send_header("Last-Modified", email.utils.formatdate(path.stat().st_mtime, usegmt=True))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            write(content[: len(content) // 2] if fault == "drop" else content)
        if fault == "drop":
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
