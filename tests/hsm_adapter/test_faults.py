"""What goes wrong outside the worker, for real: PINs, tokens, modules, processes, peers."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hsm_adapter import framing, limits
from hsm_adapter import protocol as p
from tests.support import hsm

# What any language would send: a frame of 9 bytes, [1, [["Ping"]]]. Run by a Python without our packages.
RAW_PING = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
    s.sendall(bytes([0, 0, 0, 9, 0x92, 1, 0x91, 0x91, 0xA4]) + b"Ping")
    print("answered" if s.recv(100) else "refused")
except ConnectionError:
    print("refused")
"""

# What systemd does for a socket-activated service.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "hsm_adapter", "--config", sys.argv[2]])
"""


def reason(client: hsm.Client) -> str:
    """Why the worker is unhealthy, "" while it is healthy."""
    return client.one(p.Ping(), p.Pong).reason


def release(client: hsm.Client, host: hsm.Host) -> p.Rewrap:
    """A release that is granted on this token."""
    record = client.one(p.CreateKey(p.NewKey("vm-1", 1, 64, b"")), p.KeyRecord)
    return p.Rewrap(
        record, client.one(host.open_session(os.urandom(16)), p.OpenedSession).record, 1, 2_000_000_000, 300
    )


def events(worker: hsm.RunningWorker) -> list[str]:
    """The events it logged."""
    return [json.loads(line)["event"] for line in worker.log.splitlines()]


# ── opening ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_pin_is_tried_once_and_never_again(token: hsm.SoftToken, tmp_path: Path) -> None:
    """Real tokens lock after a few; a worker must not be what locks them."""
    (token.home / "pin").write_text("000000\n")
    with hsm.running_worker(token, tmp_path / "w", self_test_interval=0.1) as worker:
        client = worker.client()
        assert reason(client).startswith("hsm.pin_incorrect")
        error = client.one(p.Random(1), p.OperationError)
        assert (error.code, error.retryable) == ("hsm.pin_incorrect", False)
        time.sleep(1.5)  # longer than HEAL_BACKOFF_S
        client.one(p.SelfTest(), p.SelfTestResult)
        assert events(worker).count("not serving") == 1
        (token.home / "pin").write_text("482915\n")
        assert client.one(p.Random(1), p.OperationError).code == "hsm.pin_incorrect", "not even with the right one"


def test_an_open_pin_file_is_refused(token: hsm.SoftToken, tmp_path: Path) -> None:
    (token.home / "pin").chmod(0o640)
    with hsm.running_worker(token, tmp_path / "w") as worker:
        assert reason(worker.client()).startswith("hsm.pin_source")


def test_a_missing_module_is_named(token: hsm.SoftToken, tmp_path: Path) -> None:
    with hsm.running_worker(token, tmp_path / "w", module=str(tmp_path / "none.so")) as worker:
        error = worker.client().one(p.Random(1), p.OperationError)
    assert error.code == "hsm.module_missing"
    assert "none.so" in error.detail


def test_a_library_that_is_no_module_is_named(token: hsm.SoftToken, tmp_path: Path) -> None:
    with hsm.running_worker(token, tmp_path / "w", module="libc.so.6") as worker:
        assert reason(worker.client()).startswith("hsm.module_missing")


def test_a_missing_token_is_named(token: hsm.SoftToken, tmp_path: Path) -> None:
    with hsm.running_worker(token, tmp_path / "w", token_label="elsewhere") as worker:
        error = worker.client().one(p.Random(1), p.OperationError)
    assert (error.code, error.retryable) == ("hsm.token_missing", True)
    assert "'elsewhere'" in error.detail


def test_a_token_without_keys_is_named(tmp_path: Path) -> None:
    token = hsm.blank_token(tmp_path / "t")
    initialise = (
        "from hsm_adapter.pin import read_pin; from hsm_adapter.provision import init_token;"
        f"so_pin, pin = read_pin('file:{token.home}/so-pin'), read_pin({token.pin!r});"
        f"print(init_token({hsm.MODULE!r}, {hsm.LABEL!r}, so_pin, pin))"
    )
    assert token.python(initialise) == "True\n"
    with hsm.running_worker(token, tmp_path / "w") as worker:
        client = worker.client()
        assert reason(client).startswith("hsm.key_missing: the token has no keypeer/kek/1")
        token.provision()
        hsm.wait_until(lambda: not reason(client))


@pytest.mark.parametrize("change", [{"unknown_key": 1}, {"recycle_after": 0}, {"token_label": "x" * 33}, {"pin": None}])
def test_bad_settings_end_the_process(token: hsm.SoftToken, tmp_path: Path, change: dict[str, object]) -> None:
    worker = hsm.spawn_worker(token, tmp_path / "w", **change)
    assert worker.process.wait(timeout=30) == os.EX_CONFIG
    assert next(iter(change)) in worker.log


# ── a token that goes and comes back ───────────────────────────────────────────────────────────────────────────


def test_a_token_removed_and_restored_heals(token: hsm.SoftToken, tmp_path: Path, host: hsm.Host) -> None:
    with hsm.running_worker(token, tmp_path / "w") as worker:
        client = worker.client()
        granted = release(client, host)
        before = client.one(granted, p.Released)
        token.tokens.rename(tmp_path / "away")
        token.tokens.mkdir()
        tested = client.one(p.SelfTest(), p.SelfTestResult)
        assert not tested.passed
        assert tested.reason.startswith("hsm.token_missing")
        error = client.one(granted, p.OperationError)
        assert (error.code, error.retryable) == ("hsm.token_missing", True)
        assert reason(client) == tested.reason
        token.tokens.rmdir()
        (tmp_path / "away").rename(token.tokens)
        hsm.wait_until(lambda: isinstance(client.call(granted)[0], p.Released))
        assert client.one(granted, p.Released) == before
        assert reason(client) == ""


def test_another_kek_under_the_same_label_takes_the_worker_out(
    token: hsm.SoftToken, tmp_path: Path, host: hsm.Host
) -> None:
    """The self-test sees it by itself, and the worker stays out."""
    with hsm.running_worker(token, tmp_path / "w", self_test_interval=0.2) as worker:
        client = worker.client()
        granted = release(client, host)
        token.python(
            f"""
import pkcs11
token = pkcs11.lib({hsm.MODULE!r}).get_token(token_label={hsm.LABEL!r})
session = token.open(rw=True, user_pin="482915")
next(session.get_objects({{pkcs11.Attribute.LABEL: "keypeer/kek/1"}})).destroy()
"""
        )
        token.provision()
        # A self-test between the two commands above finds no KEK at all, and says that.
        hsm.wait_until(lambda: reason(client).startswith("hsm.self_test_failed: KEK 1 no longer opens"))
        for operation in (granted, p.CreateKey(p.NewKey("vm-1", 1, 64, b"")), p.Mac(b""), p.Sign("ca", b"")):
            error = client.one(operation, p.OperationError)
            assert (error.code, error.retryable) == ("hsm.self_test_failed", True)
        assert not client.one(p.SelfTest(), p.SelfTestResult).passed
    with hsm.running_worker(token, tmp_path / "w2") as fresh:
        error = fresh.client().one(granted, p.OperationError)
        assert error.code == "hsm.unwrap_failed", "its MAC is right, its KEK is gone"


def test_a_rotated_kek_is_used_once_described(token: hsm.SoftToken, tmp_path: Path, host: hsm.Host) -> None:
    with hsm.running_worker(token, tmp_path / "w") as worker:
        client = worker.client()
        old = release(client, host)
        assert token.provision("--new-kek")["made"] == ["keypeer/kek/2"]
        assert client.one(p.Describe(), p.Description).kek_versions == (1, 2)
        assert client.one(p.CreateKey(p.NewKey("vm-2", 1, 32, b"")), p.KeyRecord).kek == 2
        client.one(old, p.Released)
        assert client.one(p.SelfTest(), p.SelfTestResult).passed


def test_a_record_of_a_newer_kek_is_opened_without_being_told(
    token: hsm.SoftToken, tmp_path: Path, host: hsm.Host
) -> None:
    """Another worker has rotated already; this one looks again when it meets the new version."""
    with hsm.running_worker(token, tmp_path / "w") as late:
        client = late.client()
        token.provision("--new-kek")
        with hsm.running_worker(token, tmp_path / "w2") as early:
            granted = release(early.client(), host)
        assert granted.record.kek == 2
        time.sleep(1.0)  # KEY_REFRESH_INTERVAL_S since the late worker last looked
        client.one(granted, p.Released)


# ── processes ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_after_kill_9_a_successor_takes_the_socket_and_the_records(
    token: hsm.SoftToken, tmp_path: Path, host: hsm.Host
) -> None:
    first = hsm.start_worker(token, tmp_path / "w")
    granted = release(first.client(), host)
    before = first.client().one(granted, p.Released)
    first.process.kill()
    assert first.process.wait() == -signal.SIGKILL
    assert first.socket.exists(), "the stale socket lies there"
    with hsm.running_worker(token, tmp_path / "w") as second:
        assert second.client().one(granted, p.Released) == before


def test_sigterm_answers_what_has_arrived_and_exits_0(token: hsm.SoftToken, tmp_path: Path) -> None:
    worker = hsm.start_worker(token, tmp_path / "w")
    client = worker.client()

    for number in range(3):
        client.sock.sendall(framing.encode_request(number, [p.Mac(b"x")] * 512))
    worker.process.terminate()
    assert [client.receive().id for _ in range(3)] == [0, 1, 2]
    assert worker.process.wait(timeout=30) == 0
    assert not worker.socket.exists()


def test_a_worn_out_worker_finishes_its_frame_and_exits_0(token: hsm.SoftToken, tmp_path: Path) -> None:
    worker = hsm.start_worker(token, tmp_path / "w", recycle_after=10)
    client = worker.client()
    client.call(p.Ping(), p.Ping())
    assert len(client.call(*[p.Mac(b"x")] * 12)) == 12
    assert worker.process.wait(timeout=30) == 0
    with pytest.raises(ConnectionError):
        client.call(p.Ping())
    assert '"reason": "recycling"' in worker.log


def test_a_worker_leaves_with_its_parent(token: hsm.SoftToken, tmp_path: Path) -> None:
    config = hsm.settings_file(token, tmp_path / "w")
    parent = (
        "import subprocess, sys, os, time\n"
        f"child = subprocess.Popen([sys.executable, '-m', 'hsm_adapter', '--config', {str(config)!r}])\n"
        f"while not os.path.exists({str(tmp_path / 'w' / 'hsm.sock')!r}): time.sleep(0.02)\n"
        "print(child.pid)"
    )
    pid = int(token.python(parent))
    hsm.wait_until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
    assert not (tmp_path / "w" / "hsm.sock").exists()


def test_two_workers_do_not_share_a_socket(token: hsm.SoftToken, tmp_path: Path) -> None:
    with hsm.running_worker(token, tmp_path / "w") as worker:
        second = hsm.spawn_worker(token, tmp_path / "w")
        assert second.process.wait(timeout=30) == os.EX_CONFIG
        assert "another process answers there" in second.log
        assert reason(worker.client()) == ""


def test_a_file_in_the_sockets_place_is_left_alone(token: hsm.SoftToken, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    worker = hsm.spawn_worker(token, tmp_path / "w", socket=str(tmp_path / "precious"))
    assert worker.process.wait(timeout=30) == os.EX_CONFIG
    assert (tmp_path / "precious").read_text() == "data"


# ── peers and secrets ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_socket_is_ours_alone(token: hsm.SoftToken, tmp_path: Path) -> None:
    with hsm.running_worker(token, tmp_path / "w") as worker:
        assert stat.S_IMODE(worker.socket.stat().st_mode) == 0o600


@pytest.mark.parametrize("allowed", [True, False])
def test_only_named_uids_get_in(token: hsm.SoftToken, allowed: bool) -> None:
    """Past the socket's mode, which is opened on purpose: as root the client is uid nobody, else it is ourselves."""
    root = os.geteuid() == 0
    peer = 65534 if root else os.geteuid()
    with tempfile.TemporaryDirectory(prefix="keypeer-") as home:  # nobody can't walk into pytest's directories
        worker = hsm.spawn_worker(token, Path(home), allowed_uids=[peer if allowed else peer + 1])
        try:
            hsm.wait_until(worker.socket.exists)
            Path(home).chmod(0o755)
            worker.socket.chmod(0o666)
            done = token.run("python3", "-c", RAW_PING, str(worker.socket), **({"user": peer} if root else {}))
            assert done.stdout == ("answered\n" if allowed else "refused\n"), done.stderr
            assert ("connection refused" in events(worker)) is not allowed
        finally:
            worker.stop()


def test_a_socket_of_systemds_is_served_and_left_in_place(token: hsm.SoftToken, tmp_path: Path) -> None:
    """sd_listen_fds(3): descriptor 3, LISTEN_FDS, LISTEN_PID of the process itself."""
    path = tmp_path / "activated.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        config = hsm.settings_file(token, tmp_path / "w")
        command = [sys.executable, "-c", ACTIVATE, str(listener.fileno()), str(config)]
        worker = subprocess.Popen(command, pass_fds=[listener.fileno()])
        with hsm.Client(path) as client:
            assert client.one(p.Ping(), p.Pong).pid == worker.pid
        worker.terminate()
        assert worker.wait(timeout=30) == 0
    assert path.exists()
    assert not (tmp_path / "w" / "hsm.sock").exists()


def test_more_clients_than_allowed_are_turned_away(token: hsm.SoftToken, tmp_path: Path) -> None:
    with hsm.running_worker(token, tmp_path / "w") as worker:
        hsm.wait_until(lambda: len(events(worker)) >= 2)
        clients = []
        for _ in range(limits.CONNECTIONS_MAX):
            clients.append(worker.client())
            clients[-1].call(p.Ping())
        with pytest.raises(ConnectionError):
            worker.client().call(p.Ping())
        clients.pop().sock.close()
        time.sleep(0.1)
        worker.client().call(p.Ping())


def test_a_client_that_never_reads_stops_nobody(token: hsm.SoftToken, tmp_path: Path) -> None:

    with hsm.running_worker(token, tmp_path / "w") as worker:
        deaf = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deaf.connect(str(worker.socket))
        deaf.settimeout(0.5)
        frame = framing.encode_request(1, [p.Random(4096)] * 256)
        with pytest.raises(TimeoutError):
            deaf.sendall(bytes(frame) * 10_000)
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        assert resident < 200_000, "kB; back-pressure, not buffering"
        assert reason(worker.client()) == ""
        deaf.close()


def test_the_pin_shows_nowhere(token: hsm.SoftToken, tmp_path: Path) -> None:
    with hsm.running_worker(token, tmp_path / "w") as worker:
        process = Path(f"/proc/{worker.process.pid}")
        seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes() + worker.log.encode()
    assert b"482915" not in seen
    assert b"hsm_adapter" in seen


def test_no_core_no_ptrace(token: hsm.SoftToken) -> None:
    dumpable = "from hsm_adapter import hardening; hardening.protect_memory(); import ctypes, resource;"
    dumpable += "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE))"
    assert token.python(dumpable) == "0 0 0\n"
