"""A client of the explorer that has its cookie."""

from __future__ import annotations

from starlette.testclient import TestClient

from pipeline.explore.app import make_app
from pipeline.explore.explorer import Explorer


def opened_client(explorer: Explorer) -> TestClient:
    """Return a client whose tokens are `t` to enter and `w` to change."""
    client = TestClient(make_app(explorer, "t", "w"), base_url="http://127.0.0.1:8000")
    assert client.get("/?token=t", follow_redirects=False).status_code == 303
    return client


def ids(client: TestClient, **query: object) -> list[str]:
    """Return the ids of the clips that a query of the page gets, in order."""
    answer = client.get("/api/clips", params=query)
    assert answer.status_code == 200, answer.text
    return [clip["id"] for clip in answer.json()["clips"]]
