"""Start of the explorer: listen on loopback and print the address to open."""

from __future__ import annotations

import secrets
import socket

import numpy as np
import uvicorn

from filters.content.reference import read_pictures
from pipeline.explore.app import make_app
from pipeline.explore.explorer import Explorer
from pipeline.sources.discover import SourceError
from pipeline.storage.store import Store

ADDRESS = "127.0.0.1"


def serve(dataset: str, port: int, reference: str | None) -> None:
    """Serve `dataset` until Ctrl-C, and print the address to open, which includes its token.

    `port` 0 selects a free port; `reference` is a folder of pictures. Raises DatasetError if the dataset is missing or
    unfinished, SourceError for a folder without pictures, and OSError, which names the port, if that
    is in use.
    """
    pictures: list[np.ndarray] = []
    if reference:
        try:
            pictures = list(read_pictures(reference).values())
        except ValueError as error:
            raise SourceError(f"--reference: {error}") from error
    explorer = Explorer(Store(dataset), pictures)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
        except OSError as error:
            raise OSError(f"--port {port}: {error.strerror}; choose another, or none for a free one") from error
        listener.listen()  # before the address is printed, so that early connections wait for the server
        token = secrets.token_urlsafe(24)
        app = make_app(explorer, token, secrets.token_urlsafe(24))
        print(f"http://{ADDRESS}:{listener.getsockname()[1]}/?token={token}")
        print("open this address in a browser; Ctrl-C ends the explorer", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])
