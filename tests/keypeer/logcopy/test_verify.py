"""A copy of a log: whole ones verify, by us and by Go's reference; one flipped byte is found, and where it is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keypeer.errors import StateError
from keypeer.logcopy import Finding, LogFolder, verify
from keypeer.wire.tlog.checkpoint import log_key
from keypeer.wire.tlog.note import COSIGNATURE, Note, VerifierKey, parse_note
from keypeer.wire.tlog.tiles import CHECKPOINT_PATH, Tile
from tests.support.tlog.copies import VERIFIER, Log, cosign, go_verify, numbered, sign

SIZES = [0, 1, 2, 255, 256, 257, 700, 1024]
WITNESS = Ed25519PrivateKey.from_private_bytes(bytes(range(100, 132)))
WITNESS_KEY = VerifierKey("witness.test/w", COSIGNATURE, WITNESS.public_key().public_bytes_raw())


def findings(copy: LogFolder, keys: list[VerifierKey] | None = None, *, strict: bool = True) -> list[Finding]:
    seen: list[tuple[int, int]] = []
    verdict = verify(copy, copy.keys() if keys is None else keys, lambda *at: seen.append(at), strict=strict)
    assert all(done <= count for done, count in seen)
    return verdict.findings


@pytest.mark.parametrize("size", SIZES)
def test_a_whole_copy_verifies_by_us_and_by_gos_reference(tmp_path: Path, size: int) -> None:
    copy = Log(numbered(size)).write(tmp_path)
    assert findings(copy) == []
    assert go_verify(tmp_path, VERIFIER) == (0, f"{size} entries verified\n")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> LogFolder:
    """Two full tiles, a partial one and a partial one above; cosigned."""
    log = Log(numbered(700))
    copy = log.write(tmp_path_factory.mktemp("small"))
    note = parse_note((copy.folder / CHECKPOINT_PATH).read_bytes())
    line = cosign(note, WITNESS, WITNESS_KEY, 1_700_000_000)
    copy.write(CHECKPOINT_PATH, str(Note(note.text, (*note.signatures, line))).encode())
    copy.pin([VERIFIER, WITNESS_KEY])
    return copy


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> LogFolder:
    """Three levels of tiles, of which two have full ones."""
    return Log(numbered(256 * 256 + 300)).write(tmp_path_factory.mktemp("large"))


def assert_found(copy: LogFolder, path: str, at: int, bit: int) -> None:
    """Flips a bit, looks, and puts it back."""
    file = copy.folder / path
    good = file.read_bytes()
    bad = bytearray(good)
    bad[at] ^= 1 << bit
    file.write_bytes(bad)
    try:
        if path == "key":
            try:
                assert findings(copy)[0].file == CHECKPOINT_PATH
            except StateError as error:
                assert error.code == "log.key"  # noqa: PT017  # either way tells
            return
        found = findings(copy)
    finally:
        file.write_bytes(good)
    assert [finding.file for finding in found] == [path], (path, at, found)
    spans = [(int(a), int(b)) for a, b in re.findall(r"bytes (\d+)–(\d+)", found[0].words)]
    if path.startswith("tile/entries") and not spans:
        assert "ends inside entry" in found[0].words or "after its last" in found[0].words
    elif path != CHECKPOINT_PATH:
        ((first, last),) = spans
        # A changed length prefix moves the end that an entry seems to have, never its start.
        assert first <= at <= max(last, first + 1), (path, at, found)


def files(copy: LogFolder) -> list[tuple[str, int]]:
    found = [path for path in copy.folder.rglob("*") if path.is_file()]
    return sorted((str(path.relative_to(copy.folder)), path.stat().st_size) for path in found)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_is_found_and_located(small: LogFolder, data: st.DataObject) -> None:
    path, size = data.draw(st.sampled_from(files(small)))
    assert_found(small, path, data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7)))
    assert findings(small) == []


@pytest.mark.parametrize(
    ("path", "at"),
    [
        ("tile/0/000", 0),
        ("tile/0/255", 8191),
        ("tile/0/256", 4000),
        ("tile/0/257.p/44", 33),
        ("tile/1/000", 31),
        ("tile/1/000", 8191),
        ("tile/1/001.p/1", 5),
        ("tile/2/000.p/1", 0),
        ("tile/entries/000", 2),
        ("tile/entries/255", 300),
        ("tile/entries/257.p/44", 10),
    ],
)
def test_on_every_level(large: LogFolder, path: str, at: int) -> None:
    assert_found(large, path, at, 3)


def test_the_large_one_is_good_by_both(large: LogFolder) -> None:
    assert findings(large) == []
    assert go_verify(large.folder, VERIFIER) == (0, "65836 entries verified\n")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tile/0/001", "tile/0/001 isn't made of the entries"),
        ("tile/1/000.p/2", "tile/1/000.p/2 isn't made of the entries"),
        ("tile/entries/001", "tile/0/001 isn't made of the entries"),
        ("checkpoint", "checkpoint: "),
    ],
)
def test_gos_reference_finds_a_flipped_byte_too(small: LogFolder, tmp_path: Path, path: str, words: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(small.folder, folder)
    raw = bytearray((folder / path).read_bytes())
    raw[5] ^= 1
    (folder / path).write_bytes(raw)
    status, said = go_verify(folder, VERIFIER)
    assert status == 1
    assert words in said
    assert findings(LogFolder(folder))


@pytest.mark.parametrize("path", ["tile/0/000", "tile/0/002.p/188", "tile/1/000.p/2", "tile/entries/001", "checkpoint"])
@pytest.mark.parametrize("damage", ["gone", "short", "long", "empty"])
def test_files_that_are_missing_or_of_another_size(small: LogFolder, tmp_path: Path, path: str, damage: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(small.folder, folder)
    file = folder / path
    raw = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"short": raw[:-1], "long": raw + b"\x00", "empty": b""}[damage])
    found = findings(LogFolder(folder))
    assert found
    assert found[0].file == path


def test_a_log_that_was_rewritten_whole_is_not_the_signed_one(small: LogFolder, tmp_path: Path) -> None:
    entries = numbered(700)
    entries[300] = b"never happened"
    copy = Log(entries).write(tmp_path)
    copy.write(CHECKPOINT_PATH, (small.folder / CHECKPOINT_PATH).read_bytes())
    found = findings(copy, [VERIFIER, WITNESS_KEY])
    assert [finding.file for finding in found] == [CHECKPOINT_PATH]
    assert "another log" in found[0].words
    assert go_verify(tmp_path, VERIFIER) == (1, "the entries' root isn't the signed one\n")


def test_another_key_than_the_pinned_one(small: LogFolder) -> None:
    other = log_key(VERIFIER.name, bytes(32))
    assert "no signature by" in findings(small, [other])[0].words
    assert (
        findings(small, [other, VERIFIER], strict=False) == []
    )  # several keys: after a rotation either may have signed


def test_a_signature_of_a_key_that_is_not_known_counts_only_when_all_should_be(small: LogFolder) -> None:
    assert findings(small, [VERIFIER], strict=False) == []
    assert [finding.words for finding in findings(small, [VERIFIER])] == [
        "line 6: signed by witness.test/w with a key that isn't pinned"
    ]


def test_a_copy_that_an_export_left_half_done_is_still_the_one_of_its_checkpoint(tmp_path: Path) -> None:
    early = Log(numbered(300))
    copy = early.write(tmp_path)
    Log(numbered(512)).write(tmp_path)
    copy.write(CHECKPOINT_PATH, str(sign(early.checkpoint)).encode())
    assert findings(copy) == []
    for tile in (Tile(0, 1, 44), Tile(None, 1, 44)):  # the full ones tell it as well
        (tmp_path / tile.path).unlink()
    assert copy.root(300) == early.frontier.root()
    assert findings(copy) == []
