"""The explorer of a dataset on an object store, over the S3 protocol."""

from __future__ import annotations

from explorer_client import ids, opened_client

from pipeline.explore.explorer import Explorer
from pipeline.storage.store import Store
from pipeline.tables.decisions import read_decisions


def test_a_dataset_on_an_object_store_is_explored_in_place(golden_dataset, network, s3, tmp_path):
    store = Store(f"s3://films/{tmp_path.name}{s3}")
    for path in sorted(golden_dataset.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            store.write(path.relative_to(golden_dataset).as_posix(), path.read_bytes())
    explorer = Explorer(store)
    try:
        client = opened_client(explorer)
        kept, *_ = ids(client, where="keep")
        near = opened_client(Explorer(Store(str(golden_dataset))))
        for path in (f"/media/{kept}", f"/thumbnails/{kept}"):
            assert client.get(path).content == near.get(path).content
        explorer.decide([kept], "reject")
        assert read_decisions(store)["decision"].to_pylist() == ["reject"]
    finally:
        explorer.close()
