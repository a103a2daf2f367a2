"""The sandbox gives up on code that hangs, crashes or eats memory, and is ready for the next call."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from typing import Any

import hostile
import msgpack
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.doctor import confinement
from pipeline.media.faults import MachineFault, OverLimit, failure
from pipeline.media.isolation.answers import decode, encode_value
from pipeline.media.isolation.sandbox import Sandbox, SandboxError
from pipeline.media.video import MediaError, probe
from pipeline.sources.source_sandbox import SourceSandbox

IN_MEMORY = """
from pipeline.media.memory_file import memory_file
with memory_file("clip") as (path, file):
    with open(path, "wb") as sink:
        sink.write(b"a clip")
    assert file.read() == b"a clip"
with open("/dev/null", "w") as sink:
    sink.write("gone")
"""


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(memory_mb=600) as child:
        yield child


def test_a_call_runs_in_another_process_that_is_kept(sandbox):
    first = sandbox.call(os.getpid, deadline=300)
    assert first != os.getpid()
    assert sandbox.call(os.getpid, deadline=300) == first


def test_large_arguments_and_answers_cross_whole(sandbox):
    data = os.urandom(5_000_000)
    assert sandbox.call(bytes.upper, data, deadline=300) == data.upper()


def test_exceptions_come_back_as_themselves(sandbox, tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(MediaError, match="empty file"):
        sandbox.call(probe, str(empty), deadline=300)
    with pytest.raises(FileNotFoundError, match="nowhere") as raised:
        sandbox.call(os.stat, "/nowhere", deadline=300)
    assert raised.value.filename == "/nowhere"


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        (os.abort, (), "the process crashed .SIGABRT."),
        (os._exit, (3,), "the process ended early .status 3."),
        (signal.raise_signal, (signal.SIGSEGV,), "the process crashed .SIGSEGV."),
    ],
)
def test_a_crash_is_a_reason_and_the_next_call_works(sandbox, function, args, reason):
    with pytest.raises(SandboxError, match=reason):
        sandbox.call(function, *args, deadline=300)
    assert sandbox.call(abs, -2, deadline=300) == 2


def test_a_call_that_takes_too_long_is_over_the_limits_of_time(sandbox):
    with pytest.raises(OverLimit, match="took longer than 1 s") as raised:
        sandbox.call(time.sleep, 60, deadline=1)
    assert raised.value.options == ("deadline_seconds", "deadline_factor")
    assert sandbox.call(abs, -2, deadline=300) == 2


@pytest.mark.parametrize(
    ("data", "repeat"),
    [
        (hostile.framed(hostile.PICKLE), 1),
        (hostile.framed(b""), 1),
        (hostile.framed(b"\xc1" * 50), 1),  # a byte that MessagePack never uses
        (hostile.framed(b"\x91" * 100_000), 1),  # lists in lists
        (hostile.framed(msgpack.packb([True, "a number"])), 1),  # of another type than the function declares
        (hostile.framed(msgpack.packb([False, {"name": "MediaError"}])), 1),
        (hostile.framed(msgpack.packb(msgpack.ExtType(1, b"x"))), 1),
        (hostile.framed(msgpack.packb([True, 1])), 2),  # more than an answer
        (hostile.framed(b"x" * (1 << 20), 1 << 62), 620),  # longer than the child's memory
    ],
)
def test_an_answer_that_is_none_is_an_error_and_runs_nothing(sandbox, data, repeat, monkeypatch):
    monkeypatch.setenv(hostile.MARK, "before")
    with pytest.raises(SandboxError, match="the process sent"):
        sandbox.call(count_and_send, data, repeat, deadline=300)
    assert os.environ[hostile.MARK] == "before"
    assert sandbox.call(abs, -2, deadline=300) == 2


def count_and_send(data: bytes, repeat: int) -> int:
    hostile.send_and_wait(data, repeat)
    return 1


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def anything() -> Any:
    """Stands for a function of the child."""


@given(values)
def test_data_comes_back_as_it_was_sent(value):
    assert decode(encode_value(value), anything) == value


@given(st.binary() | values.map(msgpack.packb))
def test_no_bytes_raise_anything_but_an_error_of_the_sandbox(answer):
    with contextlib.suppress(SandboxError):
        decode(answer, count_and_send)


def test_a_child_that_somebody_else_kills_is_started_again_with_its_work(sandbox, tmp_path):
    tries = tmp_path / "tries"
    die_at_first = f"""
import os, signal
with open({str(tries)!r}, "a") as file:
    file.write("x")
if os.path.getsize({str(tries)!r}) < 3:
    signal.raise_signal(signal.SIGKILL)
"""
    sandbox.call(exec, die_at_first, deadline=300)
    assert tries.read_text() == "xxx"
    with pytest.raises(SandboxError, match=r"crashed .SIGKILL."):
        sandbox.call(signal.raise_signal, signal.SIGKILL, deadline=300)


def test_memory_is_bounded(sandbox):
    with pytest.raises(OverLimit, match="more than 600 MB") as raised:
        sandbox.call(exec, "a = bytearray(b'x') * (700 << 20); import time; time.sleep(30)", deadline=300)
    assert raised.value.options == ("memory_mb",)
    with pytest.raises(OverLimit, match="needed more than the 600 MB"):  # over the backstop, without touching it
        sandbox.call(bytearray, 8 << 30, deadline=300)
    assert sandbox.call(abs, -2, deadline=300) == 2


def test_the_traceback_of_the_child_comes_with_its_exception(sandbox):
    with pytest.raises(RuntimeError, match="list index out of range") as raised:
        sandbox.call(exec, "def deep():\n    [][1]\ndeep()", {}, deadline=300)
    record = failure(raised.value)
    assert "in deep" in record.traceback
    assert record.place.startswith("IndexError at ")
    assert record.reason == f"internal error: {record.place}: list index out of range"


def test_an_exception_of_any_class_says_what_and_where(sandbox):
    code = "class Odd(Exception):\n    def __init__(self, a, b): super().__init__('odd')\nraise Odd(1, 2)"
    with pytest.raises(RuntimeError, match="odd") as raised:
        sandbox.call(exec, code, {}, deadline=300)
    assert failure(raised.value).place.startswith("Odd at ")


def test_a_confined_child_has_no_network_and_cannot_change_files(tmp_path):
    if "confined: no" in (held := confinement()):
        pytest.skip(held)
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    attempts = {
        "socket": "import socket; socket.socket()",
        "udp": "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "overwrite": f"open({str(kept)!r}, 'r+b')",
        "truncate": f"import os; os.truncate({str(kept)!r}, 0)",
        "create": f"open({str(tmp_path / 'new')!r}, 'w')",
        "delete": f"import os; os.unlink({str(kept)!r})",
        "rename": f"import os; os.rename({str(kept)!r}, {str(tmp_path / 'moved')!r})",
        "folder": f"import os; os.mkdir({str(tmp_path / 'folder')!r})",
        "grandchild": f"import subprocess; subprocess.run(['rm', {str(kept)!r}], check=True)",
    }
    with Sandbox(memory_mb=600, confined=True) as confined:
        for name, code in attempts.items():
            with pytest.raises((PermissionError, RuntimeError), match=r"denied|non-zero exit status"):
                confined.call(exec, code, {}, deadline=300)
            assert [p.name for p in tmp_path.iterdir()] == ["kept"], name
        read = confined.call(exec, f"assert open({str(kept)!r}).read() == 'as it was'", {}, deadline=300)
        assert read is None
        confined.call(exec, IN_MEMORY, {}, deadline=300)


def test_a_confined_child_knows_the_temporary_folder_as_libraries_ask_for_it_when_imported():
    with Sandbox(memory_mb=600, confined=True) as confined:
        confined.call(exec, "import tempfile; assert tempfile.gettempdir()", {}, deadline=300)


def test_only_a_source_behind_a_url_may_use_the_network():
    with SourceSandbox(600) as sandbox:
        for uri in ("/films/a.mp4", "file:///films/a.mp4", "/films/a.tar#b.mp4"):
            with pytest.raises(PermissionError):
                sandbox.call(uri, exec, "import socket; socket.socket()", {}, deadline=300)
        for uri in ("https://example.org/a.mp4", "s3://films/a.mp4", "ytdlp:https://example.org/a"):
            sandbox.call(uri, exec, "import socket; socket.socket()", {}, deadline=300)


def test_no_process_to_be_had_is_a_fault_of_the_machine(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("pipeline.media.isolation.sandbox.subprocess.Popen", refuse)
    with pytest.raises(MachineFault, match="no process can be started"), Sandbox() as sandbox:
        sandbox.call(abs, -2, deadline=300)


def test_prints_do_not_disturb_the_answers(sandbox):
    assert sandbox.call(exec, "print('hello'); import os; os.system('echo hello')", deadline=300) is None
    assert sandbox.call(abs, -2, deadline=300) == 2


def test_no_child_outlives_a_killed_parent():
    code = (
        "import os, time; from pipeline.media.isolation.sandbox import Sandbox; s = Sandbox();"
        "print(s.call(os.getpid, deadline=300), flush=True); s.call(time.sleep, 60, deadline=100)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone, alive = psutil.wait_procs([child], timeout=120)
    assert gone or alive[0].status() == psutil.STATUS_ZOMBIE


def test_a_child_starts_without_the_heavy_packages():
    loaded = "import sys; assert not {'torch', 'ray', 'cv2', 'av'} & set(sys.modules), 'slow start'"
    with Sandbox(memory_mb=600) as fresh:
        assert fresh.call(exec, loaded, {}, deadline=300) is None
