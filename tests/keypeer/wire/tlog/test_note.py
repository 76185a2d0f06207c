"""Signed notes, checkpoints and cosignatures, against known answers and against what isn't one."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from keypeer.wire.encoding import WireError
from keypeer.wire.tlog.checkpoint import (
    Checkpoint,
    add_checkpoint_body,
    log_key,
    open_checkpoint,
    parse_add_checkpoint,
)
from keypeer.wire.tlog.note import (
    COSIGNATURE,
    ED25519,
    Note,
    Signature,
    VerifierKey,
    cosigned,
    parse_note,
    parse_signatures,
    verify_note,
)
from tests.support.tlog.copies import KEY, ORIGIN, VERIFIER, cosign, sign

# The example of Go's golang.org/x/mod/sumdb/note.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
# C2SP tlog-cosignature's example: the format; no keys are published for it.
COSIGNED = (
    "example.com/behind-the-sofa\n"
    "20852163\n"
    "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    "\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+"
    "zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0"
    "xUe+mbIUBkBIfZ+qnA==\n"
)
CHECKPOINT = Checkpoint(ORIGIN, 7, bytes(range(32)))
WITNESS = Ed25519PrivateKey.from_private_bytes(bytes(range(100, 132)))
WITNESS_KEY = VerifierKey("witness.test/w", COSIGNATURE, WITNESS.public_key().public_bytes_raw())


def test_gos_example_verifies() -> None:
    key = VerifierKey.parse(GO_KEY)
    assert (key.name, key.kind, str(key)) == ("PeterNeumann", ED25519, GO_KEY)
    note = parse_note(GO_NOTE.encode())
    assert str(note) == GO_NOTE
    assert verify_note(note, [key]).by == {key: None}


def test_the_specifications_example_parses() -> None:
    note = parse_note(COSIGNED.encode())
    assert str(note) == COSIGNED
    head = Checkpoint.parse(note.text)
    assert (head.origin, head.size) == ("example.com/behind-the-sofa", 20_852_163)
    assert head.text == note.text
    log, witness = note.signatures
    assert (log.line, witness.line) == (5, 6)
    assert int.from_bytes(witness.data[:8], "big") == 1_679_315_147  # the time that the specification tells


def test_what_a_witness_signs() -> None:
    assert cosigned("example.com/behind-the-sofa\n1\nroot\n", 1_679_315_147) == (
        b"cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n1\nroot\n"
    )


def test_a_checkpoint_signed_and_cosigned() -> None:
    note = sign(CHECKPOINT)
    line = cosign(note, WITNESS, WITNESS_KEY, 1_700_000_000)
    data = str(Note(note.text, (*note.signatures, line))).encode()
    opened = open_checkpoint(data, [VERIFIER, WITNESS_KEY])
    assert opened.checkpoint == CHECKPOINT
    assert opened.verified.by == {VERIFIER: None, WITNESS_KEY: 1_700_000_000}
    later = line._replace(data=(1_700_000_001).to_bytes(8, "big") + line.data[8:])
    forged = str(Note(note.text, (*note.signatures, later))).encode()
    with pytest.raises(WireError, match=r"line 6.*witness\.test/w"):
        open_checkpoint(forged, [VERIFIER, WITNESS_KEY])
    assert open_checkpoint(forged, [VERIFIER]).verified.unknown[0].name == "witness.test/w"


def test_a_witness_key_signs_no_log_and_a_log_key_of_another_name_neither() -> None:
    note = sign(CHECKPOINT)
    line = cosign(note, WITNESS, WITNESS_KEY, 1)
    with pytest.raises(WireError, match="no signature"):
        open_checkpoint(str(Note(note.text, (line,))).encode(), [VERIFIER, WITNESS_KEY])
    other = log_key("another.test/log", VERIFIER.public)
    signed = Note(note.text, (Signature(other.name, other.key_id, KEY.sign(note.text.encode())),))
    with pytest.raises(WireError, match="no signature"):
        open_checkpoint(str(signed).encode(), [other])


GOOD = str(sign(CHECKPOINT))
LINE = GOOD.rpartition("\n\n")[2]
BAD_NOTES = {
    "empty": "",
    "no signatures": CHECKPOINT.text + "\n",
    "no blank line": CHECKPOINT.text + LINE,
    "no last newline": GOOD[:-1],
    "carriage returns": GOOD.replace("\n", "\r\n"),
    "a tab": GOOD.replace("7", "7\t", 1),
    "a hyphen for the dash": GOOD.replace("—", "-"),
    "no name": GOOD.replace(f"— {ORIGIN}", "— "),
    "a plus in the name": GOOD.replace(f"— {ORIGIN}", "— a+b"),
    "a wide space in the name": GOOD.replace(f"— {ORIGIN}", "— a\u2003b"),
    "an empty line below": GOOD + "\n",
    "base64 with a line's rest": GOOD[:-1] + " x\n",
    "base64url": GOOD[:-1].replace("+", "-").replace("/", "_") + "\n",
    "a signature of nothing": f"{CHECKPOINT.text}\n— {ORIGIN} {base64.b64encode(VERIFIER.key_id).decode()}\n",
    "many signatures": CHECKPOINT.text + "\n" + LINE * 65,
    "long": "x" * 70_000 + "\n\n" + LINE,
}


@pytest.mark.parametrize("case", BAD_NOTES)
def test_what_is_no_note(case: str) -> None:
    with pytest.raises(WireError):
        parse_note(BAD_NOTES[case].encode())


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(WireError, match="UTF-8"):
        parse_note(b"\xff" + GOOD.encode())


@pytest.mark.parametrize(
    "text",
    ["", "a\n", "a\n1\n", "a\n1\nx\n", "\n1\n{root}\n", "a\n01\n{root}\n", "a\n-1\n{root}\n", "a\n１\n{root}\n",
     "a\n9223372036854775808\n{root}\n", "a\n1\n{root}", "a\n1\n{root}\n\nb\n", "a\n1\nAA==\n", "a\n1\n {root}\n"],
)  # fmt: skip
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(WireError):
        Checkpoint.parse(text.replace("{root}", base64.b64encode(bytes(32)).decode()))


def test_extension_lines_are_kept() -> None:
    head = Checkpoint(ORIGIN, 0, bytes(32), ("more", "lines"))
    assert Checkpoint.parse(head.text) == head


@given(st.data())
def test_a_flipped_bit_in_a_signed_checkpoint_never_passes_for_the_log(data: st.DataObject) -> None:
    raw = bytearray(GOOD.encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(WireError):
        open_checkpoint(bytes(raw), [VERIFIER])


@pytest.mark.parametrize(
    "text",
    ["", "a", "a+b", "a+b+c", GO_KEY[:-1], GO_KEY.replace("c74f20a3", "c74f20a4"), GO_KEY.replace("Peter", "Pete r"),
     "PeterNeumann+c74f20a3+" + base64.b64encode(b"\x02" + bytes(32)).decode(), GO_KEY.upper()],
)  # fmt: skip
def test_what_is_no_verifier_key(text: str) -> None:
    with pytest.raises(WireError):
        VerifierKey.parse(text)


def test_asking_a_witness() -> None:
    note = sign(CHECKPOINT)
    body = add_checkpoint_body(3, [bytes(32), b"\x01" * 32], note)
    assert body.startswith(b"old 3\n" + base64.b64encode(bytes(32)) + b"\n")
    assert parse_add_checkpoint(body) == (3, [bytes(32), b"\x01" * 32], str(note).encode())
    assert parse_add_checkpoint(add_checkpoint_body(0, [], note)) == (0, [], str(note).encode())
    for bad in (
        b"",
        b"old 1",
        b"old 01\n\nx",
        b"old x\n\nx",
        b"new 1\n\nx",
        b"old 1\n!\n\nx",
        b"old 1" + b"\nAA==" * 64 + b"\n\n",
    ):
        with pytest.raises(WireError):
            parse_add_checkpoint(bad)


def test_signature_lines_alone_as_witnesses_answer_them() -> None:
    line = cosign(sign(CHECKPOINT), WITNESS, WITNESS_KEY, 5)
    assert parse_signatures(str(line)) == (line._replace(line=1),)
    with pytest.raises(WireError):
        parse_signatures("")
