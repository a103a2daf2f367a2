"""A proxy in front of a real server that answers some requests as a bad network would."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
from collections import Counter
from collections.abc import Callable, Iterator

HOP = ("content-length", "transfer-encoding", "connection", "expect")  # headers of one connection
ERRORS = {"500": ("InternalError", 500), "503": ("SlowDown", 503)}


class Proxy:
    """`fault(method, path, times)` names what happens to a request that was made `times` times before: 500, 503,
    refused, cut (in the middle of the answer), lost (after the server has handled it), or "" for nothing. `requests`
    and `faults` count them."""

    def __init__(self, port: int) -> None:
        self.behind, self.port = port, 0
        self.fault: Callable[[str, str, int], str] = lambda *_: ""
        self.requests: Counter[tuple[str, str]] = Counter()
        self.faults: Counter[str] = Counter()
        self._lock = threading.Lock()

    def of(self, method: str, path: str, span: str) -> str:
        with self._lock:
            times = self.requests[method, path + span]
            self.requests[method, path + span] += 1
            fault = self.fault(method, path, times)
            self.faults[fault] += 1
            return fault


@contextlib.contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """Run a proxy for the server at `port` of loopback; yield it, with its own `port`."""
    state = Proxy(port)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            sent = self.received()
            fault = state.of(self.command, self.path, self.headers.get("Range") or "")
            if fault in ERRORS:
                name, status = ERRORS[fault]
                return self.give(status, [], f"<Error><Code>{name}</Code></Error>".encode())
            if fault == "refused":
                return self.hang_up()
            behind = http.client.HTTPConnection("127.0.0.1", state.behind, timeout=300)
            headers_sent = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
            behind.request(self.command, self.path, sent, headers_sent)
            answer = behind.getresponse()
            data = answer.read()
            behind.close()
            if fault == "lost":
                return self.hang_up()
            headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in HOP]
            size = answer.getheader("Content-Length") if self.command == "HEAD" else None
            return self.give(answer.status, headers, data, cut=fault == "cut", size=size)

        def received(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def give(
            self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False, size: str | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", size or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.hang_up()

        def hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)

        def log_message(self, *_: object) -> None:
            """Not on the test's output."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
