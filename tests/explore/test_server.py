"""The command `clipmill explore`: a real server on a port, from its start to Ctrl-C."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.cli import main


def test_the_printed_address_opens_the_page_and_ctrl_c_ends_it(golden_dataset: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "like.png"), np.zeros((8, 8, 3), np.uint8))
    command = [sys.executable, "-m", "pipeline.cli", "explore", str(golden_dataset), "--reference", str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:")
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
            assert b"<!doctype html>" in browser.open(address).read()
            host = address.partition("/?")[0]
            assert b'"reference":1' in browser.open(f"{host}/api/dataset").read()
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(f"{host}/api/dataset")
            process.send_signal(signal.SIGINT)
            assert process.wait() == 130
        finally:
            process.kill()


def test_what_cannot_be_explored_ends_with_status_2_and_one_line(golden_dataset, tmp_path, capsys):
    for words, message in (
        ([str(tmp_path)], "is not a dataset"),
        ([str(golden_dataset), "--reference", str(tmp_path / "none")], "there is no folder with pictures"),
    ):
        assert main(["explore", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_port_that_is_in_use_is_named(golden_dataset, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["explore", str(golden_dataset), "--port", str(port)]) == 1
    assert capsys.readouterr().err.startswith(f"clipmill: --port {port}: Address already in use; choose another")
