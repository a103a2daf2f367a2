"""The sandbox gives up on code that hangs, crashes or eats memory, and is ready for the next call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.media.sandbox import Sandbox, SandboxError
from pipeline.media.video import MediaError, probe


@pytest.fixture
def sandbox():
    with Sandbox(memory_mb=600) as made:
        yield made


def test_a_call_runs_in_another_process_that_is_kept(sandbox):
    first = sandbox.call(os.getpid, deadline=20)
    assert first != os.getpid()
    assert sandbox.call(os.getpid, deadline=20) == first


def test_large_arguments_and_answers_cross_whole(sandbox):
    data = os.urandom(5_000_000)
    assert sandbox.call(bytes.upper, data, deadline=20) == data.upper()


def test_exceptions_come_back_as_themselves(sandbox, tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(MediaError, match="empty file"):
        sandbox.call(probe, str(empty), deadline=20)
    with pytest.raises(ZeroDivisionError):
        sandbox.call(divmod, 1, 0, deadline=20)


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        (time.sleep, (60,), "took longer than 1 s"),
        (os.abort, (), "the process crashed .SIGABRT."),
        (os._exit, (3,), "the process ended early .status 3."),
        (signal.raise_signal, (signal.SIGSEGV,), "the process crashed .SIGSEGV."),
    ],
)
def test_a_hang_or_a_crash_is_a_reason_and_the_next_call_works(sandbox, function, args, reason):
    with pytest.raises(SandboxError, match=reason):
        sandbox.call(function, *args, deadline=1)
    assert sandbox.call(abs, -2, deadline=20) == 2


def test_a_child_that_somebody_else_kills_is_started_again_with_its_work(sandbox, tmp_path):
    tries = tmp_path / "tries"
    die_at_first = f"""
import os, signal
with open({str(tries)!r}, "a") as file:
    file.write("x")
if os.path.getsize({str(tries)!r}) < 3:
    signal.raise_signal(signal.SIGKILL)
"""
    sandbox.call(exec, die_at_first, deadline=20)
    assert tries.read_text() == "xxx"
    with pytest.raises(SandboxError, match=r"crashed .SIGKILL."):
        sandbox.call(signal.raise_signal, signal.SIGKILL, deadline=20)


def test_memory_is_bounded(sandbox):
    with pytest.raises(SandboxError, match="more than 600 MB"):
        sandbox.call(exec, "a = bytearray(b'x') * (700 << 20); import time; time.sleep(30)", deadline=20)
    with pytest.raises(MemoryError):  # one step over the backstop, without touching it
        sandbox.call(bytearray, 8 << 30, deadline=20)
    assert sandbox.call(abs, -2, deadline=20) == 2


def test_prints_do_not_disturb_the_answers(sandbox):
    assert sandbox.call(exec, "print('hello'); import os; os.system('echo hello')", deadline=20) is None
    assert sandbox.call(abs, -2, deadline=20) == 2


def test_no_child_outlives_a_killed_parent():
    code = (
        "import os, time; from pipeline.media.sandbox import Sandbox; s = Sandbox();"
        "print(s.call(os.getpid, deadline=20), flush=True); s.call(time.sleep, 60, deadline=100)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone, alive = psutil.wait_procs([child], timeout=10)
    assert gone or alive[0].status() == psutil.STATUS_ZOMBIE


def test_a_child_starts_without_the_heavy_packages(sandbox):
    loaded = "import sys; assert not {'torch', 'ray', 'cv2', 'av'} & set(sys.modules), 'slow start'"
    assert sandbox.call(exec, loaded, {}, deadline=20) is None
