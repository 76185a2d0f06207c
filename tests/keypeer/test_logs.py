"""Reading the kernel's logs: what is left out, and what is told."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from keypeer import limits, logs
from keypeer.errors import StateError
from keypeer.state import AgentSettings
from keypeer.tpm import Boot
from keypeer.wire.encoding import b64decode
from keypeer.wire.messages import LogPositions


def test_a_boot_log_that_the_service_has_is_named_only(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"events")
    digest = hashlib.sha256(b"events").hexdigest()
    whole = logs.boot_log(tmp_path / "log", LogPositions(boot_log="00" * 32))
    assert (whole.sha256, b64decode(whole.log or "")) == (digest, b"events")
    assert logs.boot_log(tmp_path / "log", LogPositions(boot_log=digest)).log is None


@pytest.mark.parametrize(("known", "sent"), [(0, b"a\nb\nc\n"), (2, b"c\n"), (3, b""), (9, b"")])
def test_the_list_goes_on_where_the_service_is(tmp_path: Path, known: int, sent: bytes) -> None:
    (tmp_path / "ima").write_bytes(b"a\nb\nc\n")
    log = logs.ima_log(tmp_path / "ima", LogPositions(ima=known))
    assert (log.start, b64decode(log.entries)) == (known, sent)


def test_more_than_goes_at_a_time_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ima").write_bytes(b"aaaa\nbbbb\ncccc\n")
    monkeypatch.setattr(limits, "IMA_INCREMENT_BYTES_MAX", 12)
    with pytest.raises(StateError) as caught:
        logs.ima_log(tmp_path / "ima", LogPositions())
    assert caught.value.code == "log.size"
    assert b64decode(logs.ima_log(tmp_path / "ima", LogPositions(ima=1)).entries) == b"bbbb\ncccc\n"


def test_another_boots_positions_count_for_nothing_but_its_boot_log() -> None:
    known = LogPositions(boot_log="00" * 32, reset_count=4, ima=7, launches=2)
    assert logs.of_this_boot(known, Boot(4, 1)) == known
    assert logs.of_this_boot(known, Boot(5, 0)) == LogPositions(boot_log="00" * 32)


@pytest.mark.parametrize(("size", "code"), [(None, "log.missing"), (20, "log.size")])
def test_a_log_that_is_none_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None, code: str
) -> None:
    monkeypatch.setattr(limits, "BOOT_LOG_BYTES_MAX", 10)
    if size is not None:
        (tmp_path / "log").write_bytes(bytes(size))
    with pytest.raises(StateError) as caught:
        logs.boot_log(tmp_path / "log", LogPositions())
    assert caught.value.code == code


def test_the_kernels_logs_belong_to_the_machines_own_chip() -> None:
    software = AgentSettings(server="https://kms", host="h", tcti="swtpm:path=/x")
    assert (software.boot_log_file(), software.ima_log_file()) == (None, None)
    told = AgentSettings(server="https://kms", host="h", tcti="swtpm:path=/x", boot_log="/a", ima_log="")
    assert (told.boot_log_file(), told.ima_log_file()) == (Path("/a"), None)
