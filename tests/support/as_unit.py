"""Becomes the process of a unit as systemd starts it: python as_unit.py JSON, with what tests/support/units.py asks.

Descriptors from 3 on (sd_listen_fds(3)), the user, no new privileges, and the unit's system calls by seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys

_PR_SET_NO_NEW_PRIVS = 38  # prctl(2)
_ALLOW = 0x7FFF0000  # SCMP_ACT_ALLOW of libseccomp's seccomp.h
_ERRNO = 0x00050000 | errno.EPERM  # SCMP_ACT_ERRNO(EPERM)


def filter_calls(names: list[str]) -> None:
    """All other system calls fail with EPERM from here on."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(_ERRNO))
    for name in names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # else another architecture's
            library.seccomp_rule_add(context, _ALLOW, number, 0)
    if library.seccomp_load(context) != 0:
        raise SystemExit("seccomp_load failed")


def main(asked: dict[str, object]) -> None:
    descriptors, argv = asked["descriptors"], asked["argv"]
    assert isinstance(descriptors, list)
    assert isinstance(argv, list)
    assert isinstance(asked["calls"], list)
    high = [os.dup2(each, 200 + index) for index, each in enumerate(descriptors)]
    for index, each in enumerate(high):
        os.dup2(each, 3 + index, inheritable=True)
        os.close(each)
    if descriptors:
        os.environ.update(LISTEN_FDS=str(len(descriptors)), LISTEN_PID=str(os.getpid()))
    if os.geteuid() != asked["uid"]:
        os.setgroups([])
        os.setresgid(asked["uid"], asked["uid"], asked["uid"])  # type: ignore[arg-type]  # an int
        os.setresuid(asked["uid"], asked["uid"], asked["uid"])  # type: ignore[arg-type]
    os.umask(0o077)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    filter_calls(asked["calls"])
    os.execv(argv[0], argv)  # noqa: S606 - there is no shell


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
