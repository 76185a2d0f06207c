"""Measurement lists: parsed to the last byte in both forms, replayed as extended, and every attack on them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from kms import limits
from kms.domain.attestation import ImaPosition
from kms.errors import EvidenceError
from kms.evidence.ima.appraise import advance
from kms.evidence.ima.entry import TEMPLATES, Entry, parse_ascii, parse_binary
from kms.evidence.ima.replay import check_template_hashes
from kms.evidence.model import Findings
from tests.support.ima_log import ImaList, Line, ng

KEY = ec.generate_private_key(ec.SECP256R1())


def every_template() -> ImaList:
    log = ImaList().file("/usr/bin/bash", b"bash").file("/opt/a", b"a", "sha512").legacy("/old", b"old")
    log.signed("/usr/lib/x.so", b"x", KEY).signed("/usr/lib/y.so", b"y", KEY, version=3)
    log.buffer(".ima", b"certificate").violation("/var/log/wtmp")
    empty = ng("/usr/bin/unsigned", hashlib.sha256(b"unsigned").digest())
    log.add(Line("ima-sig", (*empty.data, b""), (*empty.shown, "")))
    v2 = (f"ima:{empty.shown[0]}", "/v2")
    log.add(Line("ima-ngv2", (b"ima:" + empty.data[0], b"/v2\0"), v2))
    log.add(
        Line(
            "ima-modsig",
            (*empty.data, b"", b"sha256:\0" + bytes(32), b"\x01\x02"),
            (*empty.shown, "", f"sha256:{bytes(32).hex()}", "0102"),
        )
    )
    numbers = (b"\x01\0\0\0", b"\x02\0\0\0", b"\xa4\x81")
    log.add(
        Line(
            "evm-sig",
            (*empty.data, b"\x05", b"security.ima|security.selinux\0", b"\x01\0\0\0", b"\x09", *numbers),
            (*empty.shown, "05", "security.ima|security.selinux", "01000000", "09", "1", "2", "33188"),
        )
    )
    return log


def moved(
    log: ImaList, quoted: bytes, known: ImaPosition | None = None, entries: list[Entry] | None = None
) -> tuple[ImaPosition, int, list[str]]:
    """Position, proven entries and reasons of one increment."""
    findings = Findings("host")
    sent = parse_ascii(log.ascii()) if entries is None else entries
    position, proven = advance(findings, known or ImaPosition(), sent, "sha256", {10: quoted})
    return position, len(proven), [reason.id for reason in findings.reasons]


def test_both_forms_say_the_same_of_every_template() -> None:
    log = every_template()
    entries = parse_ascii(log.ascii())
    assert entries == parse_binary(log.binary())
    check_template_hashes(entries)
    assert [entry.hashed for entry in entries] == [line.hashed for line in log.lines]
    assert {entry.template for entry in entries} == {*TEMPLATES, b"ima"}
    assert entries[0].claim == f"sha256:{hashlib.sha256(b'bash').hexdigest()} /usr/bin/bash".encode()


@pytest.mark.parametrize("padded", [False, True], ids=["since 5.8", "before 5.8"])
def test_a_list_leads_to_the_quoted_pcr(padded: bool) -> None:
    log = every_template()
    position, proven, reasons = moved(log, log.pcr("sha256", padded=padded))
    assert reasons == []
    assert (position.entries, proven, position.padded) == (len(log.lines), len(log.lines), padded)
    more = ImaList().file("/usr/bin/ls", b"ls")
    whole = ImaList()
    whole.lines = log.lines + more.lines
    again, proven, reasons = moved(more, whole.pcr("sha256", padded=padded), position)
    assert (again.entries, proven, reasons) == (len(whole.lines), 1, [])


def test_nothing_after_the_match_is_believed() -> None:
    log = ImaList().file("/a", b"a").file("/b", b"b")
    quoted = log.pcr("sha256")
    log.file("/evil", b"evil")
    position, proven, reasons = moved(log, quoted)
    assert (position.entries, proven, reasons) == (2, 2, [])


def test_no_news_is_good_when_the_pcr_stands_still() -> None:
    log = ImaList().file("/a", b"a")
    known, _, _ = moved(log, log.pcr("sha256"))
    assert moved(ImaList(), known.value, known) == (known, 0, [])


TAMPERED = {
    "entry left out": lambda lines: lines[1:],
    "entries swapped": lambda lines: [lines[1], lines[0], *lines[2:]],
    "entry twice": lambda lines: [lines[0], *lines],
    "entry replaced": lambda lines: [ng("/usr/bin/evil", bytes(32)), *lines[1:]],
    "cut": lambda lines: lines[:-1],
    "empty": lambda lines: [],
    "violation hidden": lambda lines: [replace(line, violation=False) for line in lines],
    "file called a violation": lambda lines: [replace(lines[0], violation=True), *lines[1:]],
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED)
def test_a_list_that_was_tampered_with_leads_nowhere(tamper: object) -> None:
    log = every_template()
    quoted = log.pcr("sha256")
    log.lines = tamper(log.lines)  # type: ignore[operator]  # of the table above
    position, proven, reasons = moved(log, quoted)
    assert (position, proven, reasons) == (ImaPosition(), 0, ["runtime.ima.replay"])


def test_a_pcr_that_moved_without_the_list_is_refused() -> None:
    log = ImaList().file("/a", b"a")
    known, _, _ = moved(log, log.pcr("sha256"))
    assert moved(ImaList(), bytes(32), known)[2] == ["runtime.ima.replay"]


def test_too_many_entries_of_one_boot_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    log = ImaList().file("/a", b"a").file("/b", b"b")
    entries = parse_ascii(log.ascii())
    monkeypatch.setattr(limits, "IMA_ENTRIES_MAX", 1)
    assert moved(log, log.pcr("sha256"), entries=entries)[2] == ["runtime.ima.size"]


def test_an_entry_whose_hash_is_of_something_else_is_malformed() -> None:
    text = ImaList().file("/a", b"a").ascii().replace(b"/a", b"/b")
    with pytest.raises(EvidenceError, match="entry 1"):
        check_template_hashes(parse_ascii(text))


LINE = ng("/a", bytes(32)).ascii()[:-1]
MALFORMED = {
    "no line end": LINE,
    "another PCR": LINE.replace(b"10 ", b"11 ", 1) + b"\n",
    "short hash": LINE.replace(b"10 ", b"10 ab", 1)[:20] + b"\n",
    "hash not hex": b"10 " + b"zz" * 20 + b" ima-ng sha256:" + b"00" * 32 + b" /a\n",
    "digest not hex": b"10 " + b"00" * 20 + b" ima-ng sha256:" + b"0g" * 32 + b" /a\n",
    "digest without algorithm": b"10 " + b"00" * 20 + b" ima-sig " + b"00" * 32 + b" /a \n",
    "unknown template": LINE.replace(b"ima-ng", b"ima-xx") + b"\n",
    "fields missing": b"10 " + b"00" * 20 + b" ima-ng\n",
    "a field too many": ImaList().signed("/a", b"a", KEY).ascii()[:-1] + b" 00\n",
    "empty line": b"\n",
    "legacy digest too long": b"10 " + b"00" * 20 + b" ima " + b"00" * 21 + b" /a\n",
    "number too large": b"10 " + b"00" * 20 + b" evm-sig sha256:00 /a 05 x 00 00 4294967296 2 3\n",
    "null bytes": bytes(100),
    "NUL in a name": ng("/a\0/b", bytes(32)).ascii(),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_text_that_is_no_list_is_malformed(text: bytes) -> None:
    with pytest.raises(EvidenceError) as caught:
        parse_ascii(text)
    assert caught.value.code == "evidence.malformed"


@pytest.mark.parametrize("cut", [1, 3, 10, 24, 27, 40, 50])
def test_binary_that_ends_within_an_entry_is_malformed(cut: int) -> None:
    with pytest.raises(EvidenceError):
        parse_binary(ImaList().file("/a", b"a").binary()[:-cut])


@pytest.mark.parametrize("name", [b"/a", b"/a\0b\0", b"/a\nb\0", b""])
def test_a_name_that_could_be_read_as_two_is_malformed(name: bytes) -> None:
    line = Line("ima-ng", (b"sha256:\0" + bytes(32), name), ())
    with pytest.raises(EvidenceError):
        parse_binary(line.binary())


def test_an_entry_cannot_pass_for_one_of_the_template_without_lengths() -> None:
    # The template's name is in no hash, and ``ima`` hashes 276 bytes: a file with a path that fills them and a digest
    # ground to hold a path would get another name, under an exclude.
    line = ng("/usr/bin/" + "e" * 218, bytes(range(1, 9)) + b"/tmp/" + b"E" * 19)
    digest, name = line.hashed[:20], line.hashed[20:].rstrip(b"\0")
    assert len(line.hashed) == 276
    spoofed = Line("ima", (digest, name), (digest.hex(), name.decode("latin-1")))
    assert spoofed.template_hash == line.template_hash
    text = b"10 %s ima %s %s\n" % (line.template_hash.hex().encode(), digest.hex().encode(), name)
    for parse, data in ((parse_ascii, text), (parse_binary, spoofed.binary())):
        with pytest.raises(EvidenceError, match="NUL"):
            parse(data)


@pytest.mark.parametrize("name", [b"/a\0", b"/a\0b", b"/a\nb"])
def test_a_legacy_name_holds_neither_nul_nor_line_end(name: bytes) -> None:
    with pytest.raises(EvidenceError):
        parse_binary(Line("ima", (bytes(20), name), ()).binary())


def test_huge_lengths_take_no_memory() -> None:
    entry = bytearray(ImaList().file("/a", b"a").binary())
    entry[24:28] = b"\xff\xff\xff\xff"
    with pytest.raises(EvidenceError):
        parse_binary(bytes(entry))


def test_an_increment_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    log = ImaList().file("/a", b"a").file("/b", b"b")
    for bound, value in (("IMA_INCREMENT_BYTES_MAX", 10), ("IMA_ENTRIES_MAX", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(limits, bound, value)
            for parse, data in ((parse_ascii, log.ascii()), (parse_binary, log.binary())):
                with pytest.raises(EvidenceError):
                    parse(data)


EVERY = every_template()  # once: ECDSA signatures differ each time


@given(st.binary(max_size=400))
def test_whatever_the_bytes_only_the_evidence_error_comes(data: bytes) -> None:
    for parse in (parse_ascii, parse_binary):
        try:
            entries = parse(data)
        except EvidenceError:
            continue
        assert all(isinstance(entry.claim, bytes) for entry in entries)


@given(st.data())
def test_one_changed_byte_never_passes(data: st.DataObject) -> None:
    log = EVERY
    text = bytearray(log.ascii())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        entries = parse_ascii(bytes(text))
        check_template_hashes(entries)
    except EvidenceError:
        return
    # Of a violation nothing is proven but that there was one.
    proven = [entry.hashed for entry in entries if any(entry.template_hash)]
    same = proven == [line.hashed for line in log.lines if not line.violation] and len(entries) == len(log.lines)
    assert same or moved(log, log.pcr("sha256"), entries=entries)[2] == ["runtime.ima.replay"]
