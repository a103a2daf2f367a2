"""HTTP client of an OpenAI-compatible server: one request, retried with pauses up to a number of attempts."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from pipeline.config.secrets import IN_URL, redact
from pipeline.storage.retry import AGAIN, pause

OURS = frozenset({401, 402, 403, 404, 405})  # status codes for a wrong key, address or model: all clips will fail
LONGEST_WAIT = 600.0  # seconds of Retry-After that are honoured


class NoAnswer(Exception):
    """No answer within the attempts; the message has the last error."""


class Refused(Exception):
    """The server rejects all requests; the message says why and what to check."""


class ChatClient:
    """A thread-safe client. Setting `stop` ends every wait."""

    def __init__(
        self,
        base_url: str,
        key_env: str,
        timeout: float,
        attempts: int,
        longest_pause: float,
        requests_per_minute: float | None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"captioner server: base_url starts with http:// or https://, got {base_url!r}")
        if IN_URL.search(base_url):
            raise ValueError(f"captioner server: base_url {redact(base_url)} has credentials: set ${key_env} instead")
        self.base_url, self.key_env = base_url.rstrip("/"), key_env
        self.timeout, self.attempts, self.longest_pause = timeout, attempts, longest_pause
        self.stop = threading.Event()
        self._gap = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def post(self, body: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
        """Return the reply to a chat completion and the number of attempts. Raises ValueError if the server rejects
        this request, Refused if it rejects all requests, NoAnswer if no attempts remain."""
        problem = "stopped"
        for attempt in range(self.attempts):
            self._turn()
            if self.stop.is_set():
                break
            retry_after = None
            try:
                return self._send("/chat/completions", body), attempt + 1
            except urllib.error.HTTPError as error:
                detail = self._detail(error)
                if error.code in OURS:
                    check = f"check base_url, model and the key in ${self.key_env}"
                    raise Refused(f"{self.base_url} answers {error.code} ({detail}); {check}") from None
                if error.code not in AGAIN:
                    raise ValueError(f"{error.code} {detail}") from None
                problem = f"{error.code} {detail}"
                retry_after = error.headers.get("Retry-After")
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = self._plain(str(getattr(error, "reason", error)) or type(error).__name__)
            if attempt + 1 < self.attempts:
                self.stop.wait(pause(attempt, retry_after, self.longest_pause, LONGEST_WAIT))
        raise NoAnswer(f"no answer from {self.base_url} in {self.attempts} attempts, the last: {problem}")

    def alive(self) -> bool:
        """Return whether the server lists its models."""
        try:
            self._send("/models", None)
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return True

    def _send(self, path: str, body: Mapping[str, Any] | None) -> Mapping[str, Any]:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.key_env)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url + path, data, headers)
        with urllib.request.urlopen(request, timeout=self.timeout if body is not None else 5.0) as response:
            reply = json.loads(response.read())
        if not isinstance(reply, dict):
            raise ValueError("the reply is no JSON object")
        return reply

    def _turn(self) -> None:
        """Wait until the rate limit allows the next request."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + self._gap
        if at > now:
            self.stop.wait(at - now)

    def _detail(self, error: urllib.error.HTTPError) -> str:
        try:
            text = error.read(2000).decode(errors="replace")
            tree = json.loads(text)
            detail = tree.get("error", tree) if isinstance(tree, dict) else tree
            text = str(detail.get("message", detail)) if isinstance(detail, dict) else str(detail)
        except (OSError, http.client.HTTPException, ValueError):
            text = str(error.reason)
        return self._plain(text)

    def _plain(self, text: str) -> str:
        """Return one short line without the key, which some servers repeat in errors."""
        key = os.environ.get(self.key_env)
        return " ".join(redact(text.replace(key, "***") if key else text).split())[:200]
