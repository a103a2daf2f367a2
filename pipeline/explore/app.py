"""The explorer's HTTP routes. `Explorer` computes the responses; `Guard` authorizes the requests."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pipeline.dataset.finish import DatasetError
from pipeline.explore.catalog import ExpressionError, Query
from pipeline.explore.explorer import Explorer, UnknownClip
from pipeline.explore.guard import Guard
from pipeline.explore.media import NoMedia
from pipeline.explore.pictures import LARGEST, decode_picture
from pipeline.explore.vectors import NotReady, SearchError

MOST_CLIPS = 500  # largest number of clips on a page and in one decision request
KEPT_BY_BROWSER = {"cache-control": "private, max-age=3600"}
TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
PAGE = ("explore.html", "explore.css", "explore.js", "charts.js", "elements.js", "media.js", "explore.svg")


def make_app(explorer: Explorer, token: str, writing: str) -> Guard:
    """Return the ASGI application. Starlette calls the functions that are not `async` in threads.

    `token` is the query parameter of the first request; every POST request must carry `writing` in a header.
    """

    def dataset(request: Request) -> Response:
        return JSONResponse({**explorer.describe(), "token": writing})

    def clips(request: Request) -> Response:
        offset, limit = _count(request, "offset", 0), _count(request, "limit", 60)
        return JSONResponse(explorer.clips(_query(request), offset, min(limit, MOST_CLIPS)))

    def clip(request: Request) -> Response:
        return JSONResponse(explorer.clip(request.path_params["clip"]))

    def distribution(request: Request) -> Response:
        column = request.query_params.get("column", "rejected_by")
        return JSONResponse(explorer.distribution(column, _query(request)))

    async def decide(request: Request) -> Response:
        body = await _body(request)
        names = body.get("clips")
        if not isinstance(names, list) or len(names) > MOST_CLIPS or not all(isinstance(name, str) for name in names):
            raise ExpressionError(f"expected clips, a list of up to {MOST_CLIPS} clip ids")
        return JSONResponse({"clips": await run_in_threadpool(explorer.decide, names, body.get("decision"))})

    async def caption(request: Request) -> Response:
        body = await _body(request)
        if not isinstance(body.get("clip"), str) or not isinstance(body.get("caption"), (str, type(None))):
            raise ExpressionError("expected clip and caption")
        return JSONResponse({"clips": await run_in_threadpool(explorer.edit_caption, body["clip"], body["caption"])})

    def prepare(request: Request) -> Response:
        explorer.prepare_search()
        return JSONResponse({})

    async def upload(request: Request) -> Response:
        data = await _bytes(request)
        try:
            picture = await run_in_threadpool(decode_picture, data)
        except ValueError as error:
            raise SearchError(str(error)) from error
        return JSONResponse({"search": await run_in_threadpool(explorer.upload, picture)})

    def still(request: Request, make: Callable[[int, str], bytes]) -> Response:
        name = request.path_params["clip"]
        data = make(explorer.row(name), name)
        return Response(data, 200 if data else 404, KEPT_BY_BROWSER, "image/jpeg")

    def media(request: Request) -> Response:
        return _part(request, *explorer.media.read(explorer.media_row(request.path_params["clip"])))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(explorer.close)

    routes = [
        *(Route("/" if name == "explore.html" else f"/{name}", _file(name)) for name in PAGE),
        Route("/api/dataset", dataset),
        Route("/api/clips", clips),
        Route("/api/clips/{clip}", clip),
        Route("/api/distribution", distribution),
        Route("/api/decisions", decide, methods=["POST"]),
        Route("/api/captions", caption, methods=["POST"]),
        Route("/api/search", prepare, methods=["POST"]),
        Route("/api/pictures", upload, methods=["POST"]),
        Route("/thumbnails/{clip}", lambda request: still(request, explorer.pictures.thumbnail)),
        Route("/strips/{clip}", lambda request: still(request, explorer.pictures.strip)),
        Route("/media/{clip}", media),
    ]
    refusals = {ExpressionError: 400, SearchError: 400, UnknownClip: 404, NoMedia: 404, OSError: 500}
    handlers: dict[Any, Any] = {error: _refuse(status) for error, status in {**refusals, DatasetError: 500}.items()}
    handlers[NotReady] = lambda request, waiting: JSONResponse({"waiting": str(waiting)}, 202)
    return Guard(Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan), token, writing)


def _refuse(status: int) -> Callable[[Request, Exception], Response]:
    def answer(request: Request, error: Exception) -> Response:
        text = f"no clip {error.args[0]}" if isinstance(error, UnknownClip) else str(error)
        return JSONResponse({"error": text}, status)

    return answer


def _file(name: str) -> Callable[[Request], Response]:
    data = (importlib.resources.files("pipeline.explore") / "page" / name).read_bytes()
    return lambda request: Response(data, media_type=TYPES[name.rpartition(".")[2]])


def _query(request: Request) -> Query:
    parameters = request.query_params
    descending = parameters.get("descending") == "1"
    where, sort, search = (parameters.get(name, "") for name in ("where", "sort", "search"))
    return Query(where.strip(), sort, descending, search)


def _count(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal() or len(text) > 12:
        raise ExpressionError(f"{name}: expected a number, got {text[:40]!r}")
    return int(text)


async def _bytes(request: Request) -> bytes:
    """Return the body of a request. Raises SearchError if it is larger than LARGEST, the limit of a picture."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > LARGEST:
            raise SearchError(f"larger than {LARGEST >> 20} MB")
    return bytes(data)


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await _bytes(request))
    except ValueError as error:
        raise ExpressionError("expected JSON") from error
    if not isinstance(body, dict):
        raise ExpressionError("expected a JSON object")
    return body


def _part(request: Request, media_type: str, data: bytes) -> Response:
    """Return a response with `data`, or with the part that the Range header requests (RFC 9110, a single range)."""
    span = _span(request.headers.get("range", ""), len(data))
    if span is None:
        return PlainTextResponse("no such range", 416, {"content-range": f"bytes */{len(data)}"})
    start, end, status = span
    headers = {**KEPT_BY_BROWSER, "accept-ranges": "bytes"}
    if status == 206:
        headers["content-range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return Response(data[start:end], status, headers, media_type)


def _span(header: str, size: int) -> tuple[int, int, int] | None:
    """Return start and end in bytes, and the HTTP status.

    A header that is not a single byte range selects the whole; the result is None for a range outside of `size`.
    """
    unit, _, text = header.partition("=")
    first, dash, last = text.strip().partition("-")
    if unit.strip() != "bytes" or not dash or not (first or last) or not (first + last).isdecimal():
        return 0, size, 200
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    return (start, end, 206) if start < end else None
