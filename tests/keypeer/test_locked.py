"""What the kernel says about the memory of secrets, and that it is zero when it should be."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

from keypeer import limits
from keypeer.errors import StateError
from keypeer.locked import LockedBytes

SECRET = bytes(range(1, 33))


def filled(secret: bytes = SECRET) -> LockedBytes:
    made = LockedBytes(len(secret))
    made.writable[:] = secret
    return made


def address(secret: LockedBytes) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(secret.writable))


def mapping(at: int) -> dict[str, str]:
    """The fields of the mapping that holds ``at`` (proc_pid_smaps(5))."""
    found = False
    fields: dict[str, str] = {}
    with open("/proc/self/smaps", encoding="ascii") as smaps:
        for line in smaps:
            first = line.split(maxsplit=1)[0]
            if first.endswith(":"):
                if found:
                    fields[first[:-1]] = line.split(":", 1)[1].strip()
                continue
            if found:
                return fields
            start, _, end = first.partition("-")
            found = int(start, 16) <= at < int(end, 16)
    return fields


def test_the_memory_is_locked_undumped_and_wiped_on_fork() -> None:
    with filled() as secret:
        assert secret.locked
        fields = mapping(address(secret))
        flags = fields["VmFlags"].split()
        assert {"lo", "dd", "wf"} <= set(flags)  # locked, don't dump, wipe on fork
        assert fields["Locked"] != "0 kB"


def test_close_wipes_and_a_kept_view_reads_zeros() -> None:
    secret = filled()
    view = secret.view()
    assert bytes(view) == SECRET
    secret.close()
    secret.close()
    assert bytes(view) == bytes(32)
    assert secret.closed
    with pytest.raises(StateError) as caught:
        secret.view()
    assert caught.value.code == "secret.closed"


def test_a_kept_view_never_sees_the_next_secret() -> None:
    secret = filled()
    view = secret.view()
    secret.close()
    others = [filled(b"\xaa" * 32) for _ in range(1000)]
    assert bytes(view) == bytes(32)
    assert all(bytes(other.view()) == b"\xaa" * 32 for other in others)


def test_leaving_the_block_wipes_even_on_an_error() -> None:
    secret = filled()
    view = secret.view()
    with pytest.raises(RuntimeError), secret:
        raise RuntimeError
    assert bytes(view) == bytes(32)


def test_a_secret_that_is_dropped_is_wiped() -> None:
    secret = filled()
    view = secret.view()
    del secret
    gc.collect()
    assert bytes(view) == bytes(32)


def test_the_view_is_read_only() -> None:
    with filled() as secret, pytest.raises(TypeError):
        secret.view()[0] = 1


@pytest.mark.parametrize("deed", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_it_is_neither_copied_nor_pickled(deed: Callable[[object], object]) -> None:
    with filled() as secret, pytest.raises(TypeError):
        deed(secret)


def test_nothing_prints_it() -> None:
    with filled(b"TOPSECRETTOPSECRET") as secret:
        for text in (repr(secret), str(secret), f"{secret}", "%s" % (secret,)):  # noqa: UP031 - each way counts
            assert "TOPSECRET" not in text
            assert "54:4f" not in text
        with pytest.raises(TypeError):
            bytes(secret)  # type: ignore[call-overload]  # that it has no bytes is the point


@pytest.mark.parametrize("size", [0, -1, limits.SECRET_BYTES_MAX + 1])
def test_sizes_out_of_bounds_are_refused(size: int) -> None:
    with pytest.raises(StateError) as caught:
        LockedBytes(size)
    assert caught.value.code == "secret.size"


def test_a_forked_child_has_no_secret() -> None:
    with filled() as secret:
        view = secret.view()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                secret.view()
                told = b"served"
            except StateError as error:
                told = error.code.encode()
            os.write(writer, told + b" " + bytes(view))
            os._exit(0)
        os.waitpid(child, 0)
        told, _, seen = os.read(reader, 200).partition(b" ")
        assert told == b"secret.forked"
        assert seen == bytes(32)
        assert bytes(secret.view()) == SECRET


def test_ten_thousand_keys_fit_the_usual_limit() -> None:
    secrets = [LockedBytes(64) for _ in range(10_000)]
    assert all(secret.locked for secret in secrets)
    assert resource.getpagesize() == 4096
    assert len({address(secret) // 4096 for secret in secrets}) <= 10_000 * 64 // 4096 + 2


WITHOUT_RIGHTS = """
import os, resource
from keypeer.locked import LockedBytes
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.geteuid() == 0:  # root may lock whatever the limit (CAP_IPC_LOCK), nobody may not
    os.setgid(65534)
    os.setuid(65534)
with LockedBytes(32) as secret:
    secret.writable[:] = bytes(range(32))
    print(secret.locked, bytes(secret.view()) == bytes(range(32)))
"""


def test_without_the_right_to_lock_it_says_so_and_works() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_RIGHTS], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("False True", 0), done.stderr


HOLDER = """
import os, sys
from keypeer.locked import LockedBytes
secret = LockedBytes(32)
for at in range(32):
    secret.writable[at] = (at * 7 + 3) ^ 0x5A
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_the_pattern_is_nowhere_else_in_the_process() -> None:
    pattern = bytes((at * 7 + 3) ^ 0x5A for at in range(32))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert int(child.stdout.readline()) == child.pid
        assert occurrences(child.pid, pattern) == 1
        child.stdin.close()


def occurrences(pid: int, pattern: bytes) -> int:
    """How often ``pattern`` is in the process' writable memory."""
    count = 0
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            if "rw" not in rights:
                continue
            start, end = (int(number, 16) for number in span.split("-"))
            memory.seek(start)
            count += memory.read(end - start).count(pattern)
    return count


def test_a_protected_process_is_neither_dumped_nor_traced() -> None:
    program = (
        "import ctypes, resource; from keypeer.locked import protect_process; protect_process();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))"  # PR_GET_DUMPABLE
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert shown.stdout == "0 0 0\n"
