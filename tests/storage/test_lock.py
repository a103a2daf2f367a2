"""One build at a time in a dataset, and writers of one name that do not meet."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.dataset.finish import DatasetError
from pipeline.dataset.lock import lock
from pipeline.storage.lease import lease
from pipeline.storage.store import Store, atomic


def test_a_second_build_is_kept_out_and_told_who_has_the_lock(tmp_path: Path) -> None:
    message = rf"another build is writing to .* \(process {os.getpid()} on"
    with lock(Store(str(tmp_path))), pytest.raises(DatasetError, match=message):
        lock(Store(str(tmp_path))).__enter__()
    with lock(Store(str(tmp_path))):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_locked_by_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr("pipeline.dataset.lock.lease", functools.partial(lease, beat=0.1, silent=5.0))
    with lock(Store(str(tmp_path))) as still_ours:
        still_ours()
        with pytest.raises(DatasetError):
            lock(Store(str(tmp_path))).__enter__()


def test_writers_of_one_name_in_containers_with_one_process_id_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    target = tmp_path / "table.parquet"

    def write(number: int) -> str:
        with atomic(target) as temporary:
            temporary.write_bytes(bytes([number]) * 10_000)
            return temporary.name

    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(write, range(32)))
    assert len(names) == 32
    assert len(set(target.read_bytes())) == 1
    assert os.listdir(tmp_path) == ["table.parquet"]
