"""A real HTTP server on loopback that answers chat completions as a test's script says."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-key"
GOOD = {
    "short": "A dog runs over a lawn.",
    "dense": "A dog runs over a lawn. Then it sits down.",
    "subjects": ["dog"],
    "actions": [{"text": "a dog runs", "start": 0.0, "end": 2.0}, {"text": "it sits down", "start": 2.0, "end": 99}],
    "camera": "The camera holds still.",
    "setting": "a lawn",
    "light": "daylight",
    "style": "live action",
}


def reply(content, finish="stop", **message):
    return 200, {
        "choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 50},
    }


class Endpoint:
    """Answers with what `script(request, times this clip was asked)` returns: (status, body[, headers])."""

    def __init__(self, script):
        self.requests, self.times, self.most, self.now = [], [], 0, 0
        self.lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self._write(*endpoint.models)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint.lock:
                    endpoint.requests.append((body, dict(self.headers)))
                    endpoint.times.append(time.monotonic())
                    endpoint.now += 1
                    endpoint.most = max(endpoint.most, endpoint.now)
                    before = sum(clip_of(b) == clip_of(body) for b, _ in endpoint.requests) - 1
                try:
                    self._write(*script(body, before))
                finally:
                    with endpoint.lock:
                        endpoint.now -= 1

            def _write(self, status, body, headers=()):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.models = (200, {"data": [{"id": "m"}]})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def clip_of(body):
    """The clip's duration names it: the prompt tells it."""
    return re.search(r"clip of ([\d.]+) seconds", body["messages"][-1]["content"][-1]["text"])[1]
