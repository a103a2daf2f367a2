"""A real S3 server on loopback, for tests that want an object store."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

KEYS = {"AWS_ACCESS_KEY_ID": "AKIATHISISATEST", "AWS_SECRET_ACCESS_KEY": "a-key-that-is-in-no-file"}


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """Its port; it has a bucket `films`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/films", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()
