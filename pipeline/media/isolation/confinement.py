"""Confinement of a process that decodes untrusted bytes: no network, no writing of files. Linux only.

Landlock (kernel 5.13) denies every change to the file system, seccomp every new socket. Both last until the process
ends and apply to its children. Files in memory, pipes and open descriptors keep working.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import tempfile

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
SECCOMP_ERRNO, SECCOMP_ALLOW = 0x00050000, 0x7FFF0000
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h, of 32-bit words
X32 = 0x40000000  # numbers of x86-64's second set of system calls
# linux/audit.h: the architecture; the numbers of socket and of io_uring_setup, which can open sockets by itself
SYSCALLS = {"x86_64": (0xC000003E, (41, 425)), "aarch64": (0xC00000B7, (198, 425))}
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # of all architectures
RULE_PATH_BENEATH = 1
# linux/landlock.h: write_file, remove_dir, remove_file and the eight make_*; then by version refer, truncate
WRITES = {1: 1 << 1 | 0b111111111 << 4, 2: 1 << 13, 3: 1 << 14}
WRITE_FILE = 1 << 1


def confine() -> tuple[bool, bool]:
    """Deny this process the network and writing; return whether each denial is in force."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False, False
    return _deny_sockets(libc), _deny_writes(libc)


def try_out() -> str:
    """Test which denials are in force in this process; `doctor` runs it in a confined child."""
    held = []
    try:
        socket.socket().close()
    except PermissionError:
        held.append("no network")
    try:
        os.unlink(tempfile.mkstemp(dir="/tmp")[1])
    except PermissionError:
        held.append("no writing")
    return " and ".join(held)


def _deny_sockets(libc: ctypes.CDLL) -> bool:
    architecture, calls = SYSCALLS.get(platform.machine(), (0, ()))
    if not calls:
        return False
    refuse = SECCOMP_ERRNO | errno.EACCES
    program = [
        (LOAD, 0, 0, 4),  # the architecture of the call
        (JUMP_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, refuse),
        (LOAD, 0, 0, 0),  # its number
        (JUMP_GREATER_EQUAL, len(calls), 0, X32),
        *((JUMP_EQUAL, len(calls) - index, 0, call) for index, call in enumerate(calls)),
        (RETURN, 0, 0, SECCOMP_ALLOW),
        (RETURN, 0, 0, refuse),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    pointer = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    return not libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, pointer, 0, 0)


def _deny_writes(libc: ctypes.CDLL) -> bool:
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    handled = sum(bits for since, bits in WRITES.items() if since <= version)
    rules = libc.syscall(CREATE_RULESET, struct.pack("Q", handled), 8, 0)
    if rules < 0:
        return False
    try:
        device = os.open(os.devnull, os.O_PATH)
        try:
            libc.syscall(ADD_RULE, rules, RULE_PATH_BENEATH, struct.pack("=Qi", WRITE_FILE, device), 0)
        finally:
            os.close(device)
        return not libc.syscall(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
