"""HTTP sessions that connect to allowed addresses only. A module of its own, because importing requests takes time."""

from __future__ import annotations

import socket
import threading

import requests
import requests.adapters
import urllib3

from pipeline.config.recipe import SourceOptions
from pipeline.sources import addresses
from pipeline.sources.cookies import read_cookies

_local = threading.local()


def session(options: SourceOptions) -> requests.Session:
    """Return this thread's HTTP session, which connects to allowed addresses only, with the cookies of
    `sources.cookies`. Raises ValueError where that file cannot be read."""
    key = (options.allow_private, options.cookies)
    sessions: dict[object, requests.Session] = _local.__dict__.setdefault("sessions", {})
    if key not in sessions:
        new_session = requests.Session()
        for scheme in addresses.WEB:
            new_session.mount(scheme, _Adapter(options.allow_private))
        if options.cookies:
            new_session.cookies = read_cookies(options.cookies)  # type: ignore[assignment]
        sessions[key] = new_session
    return sessions[key]


class _Adapter(requests.adapters.HTTPAdapter):
    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        super().__init__()

    def init_poolmanager(self, *args: object, **options: object) -> None:
        super().init_poolmanager(*args, **options)  # type: ignore[arg-type]
        allow_private = self._allow_private

        class Http(urllib3.connection.HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return _checked(super()._new_conn(), allow_private)

        class Https(urllib3.connection.HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return _checked(super()._new_conn(), allow_private)

        class HttpPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Http

        class HttpsPool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Https

        self.poolmanager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}


def _checked(connection: socket.socket, allow_private: bool) -> socket.socket:
    try:
        addresses.check_address(connection.getpeername()[0], allow_private)
    except addresses.AddressRefused:
        connection.close()
        raise
    return connection
