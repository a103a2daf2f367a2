"""Access control of the explorer: only the browser of the user who started it may send requests.

Every process of this machine, and every page open in a browser, can connect to a server on loopback. Three checks:

- The printed address carries a token; the server exchanges it for a cookie that the browser withholds from other sites.
- The Host header must name this machine, against DNS rebinding.
- Requests that change data carry a second token in a header, which pages of other sites can neither read nor send.
"""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = frozenset(("127.0.0.1", "localhost", "::1"))  # with any port, because it may be forwarded by SSH
HEADER = "x-clipmill-token"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
READING = frozenset(("GET", "HEAD"))


class Guard:
    """ASGI middleware that passes authorized requests on to `app` and refuses others.

    `token` is the token in the printed address, `writing` the one in the header of requests that change data.
    """

    def __init__(self, app: ASGIApp, token: str, writing: str) -> None:
        self._app, self._token, self._writing = app, token, writing
        self._session = secrets.token_urlsafe(32)
        self._cookie = f"clipmill-{secrets.token_hex(4)}"  # unique, because cookies are shared between ports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        if scope["type"] != "http":
            return  # WebSockets are not supported
        answer = self._refusal(Request(scope))
        await (answer or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """Return the response to a request that the app must not see; None for an authorized request."""
        if _host_name(request.headers.get("host", "")) not in HOSTS:
            return PlainTextResponse("this server answers to 127.0.0.1 and localhost only", 421)
        token = request.query_params.get("token")
        if request.url.path == "/" and token and request.method in READING and _same(token, self._token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, self._session, httponly=True, samesite="strict", path="/")
            return answer
        if not _same(request.cookies.get(self._cookie, ""), self._session):
            return PlainTextResponse("open the address that `clipmill explore` printed", 403)
        if request.method not in READING and not _same(request.headers.get(HEADER, ""), self._writing):
            return PlainTextResponse(f"the header {HEADER} is missing or wrong", 403)
        return None


def _host_name(header: str) -> str | None:
    """Return the name in a Host header without its port, None for a malformed header."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _same(a: str, b: str) -> bool:
    return secrets.compare_digest(a.encode(), b.encode())
