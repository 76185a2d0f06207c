"""Runtime policies: what passes, what doesn't, and in which words."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from keypeer.wire.runtime import Requirement, RuntimePolicy, SignerKey
from kms import limits
from kms.domain.attestation import RuntimeState
from kms.errors import BadRequest
from kms.evidence.ima.appraise import judge, verdict
from kms.evidence.ima.entry import parse_ascii
from kms.evidence.ima.globs import Globs
from kms.evidence.ima.policy import CompiledRuntime
from kms.evidence.ima.signature import is_signed
from tests.support.ima_log import ImaList, Line, ima_signature, ng

PCRS = {pcr: hashlib.sha256(b"PCR %d" % pcr).digest() for pcr in range(10)}
RSA_KEY, EC_KEY = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())
WEAK_KEY = rsa.generate_private_key(65537, 1024)  # noqa: S505 - must be refused
QEMU = "/usr/bin/qemu-system-x86_64"


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def policy(**changes: Any) -> CompiledRuntime:
    fields: dict[str, Any] = {
        "sets": {"debian12": {"/usr/bin/bash": (sha256(b"bash"),), QEMU: (sha256(b"qemu"), sha256(b"qemu 2"))}},
        "excludes": ("/var/log/**", "/home/*/.cache/**", "/etc/resolv.conf"),
    }
    return CompiledRuntime("debian12", RuntimePolicy(**(fields | changes)))


def judged(log: ImaList, compiled: CompiledRuntime | None = None, *, first: bool = False) -> list[str]:
    return [reason[0] for reason in told(log, compiled, first=first)]


def told(log: ImaList, compiled: CompiledRuntime | None = None, *, first: bool = False) -> list[tuple[str, ...]]:
    compiled = compiled or policy()
    state = judge(compiled, RuntimeState(), parse_ascii(log.ascii()), first=first, host="h", bank="sha256", pcrs=PCRS)
    return list(verdict(compiled, state, "h"))


ALLOWED: dict[str, ImaList] = {
    "a file of the set": ImaList().file("/usr/bin/bash", b"bash"),
    "its other digest": ImaList().file(QEMU, b"qemu 2"),
    "said to be the file's digest": ImaList().typed("/usr/bin/bash", b"bash"),
    "excluded exactly": ImaList().file("/etc/resolv.conf", b"whatever"),
    "excluded below": ImaList().file("/var/log/a/b", b"whatever"),
    "excluded with a star": ImaList().file("/home/me/.cache/x", b"whatever"),
}


@pytest.mark.parametrize("log", ALLOWED.values(), ids=ALLOWED)
def test_what_is_allowed_passes(log: ImaList) -> None:
    assert judged(log) == []


REFUSED: dict[str, tuple[ImaList, str]] = {
    "another digest": (ImaList().file("/usr/bin/bash", b"evil"), "runtime.file"),
    "another path": (ImaList().file("/srv/bash", b"bash"), "runtime.file"),
    "another file's digest": (ImaList().file("/usr/bin/bash", b"qemu"), "runtime.file"),
    "a kernel module": (ImaList().file("/lib/modules/6.1/extra/evil.ko", b"evil"), "runtime.file"),
    "an exclude's neighbour": (ImaList().file("/var/logs/x", b"x"), "runtime.file"),
    "an exclude itself": (ImaList().file("/var/log", b"x"), "runtime.file"),
    "an exclude in the middle": (ImaList().file("/mnt/var/log/x", b"x"), "runtime.file"),
    "climbing out of an exclude": (ImaList().file("/var/log/../../bin/sh", b"x"), "runtime.file"),
    "an fs-verity digest of the same value": (ImaList().typed("/usr/bin/bash", b"bash", "verity"), "runtime.file"),
    "a violation": (ImaList().violation("/usr/bin/bash"), "runtime.violation"),
    "a violation of an excluded file": (ImaList().violation("/var/log/wtmp"), "runtime.violation"),
    "SHA-1": (ImaList().file("/usr/bin/bash", b"bash", "sha1"), "runtime.file"),
    "a legacy entry": (ImaList().legacy("/usr/bin/bash", b"bash"), "runtime.file"),
    "a keyring": (ImaList().buffer(".ima", b"key"), "runtime.buffer"),
    "a signature by nobody's key": (ImaList().signed("/opt/x", b"x", RSA_KEY), "runtime.file"),
}


@pytest.mark.parametrize(("log", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_allowed_is_refused_in_words(log: ImaList, reason: str) -> None:
    ((id_, asked, found, mend),) = told(log)
    assert id_ == reason
    assert asked
    assert mend
    assert log.lines[0].shown[1] in found


def test_a_violation_that_claims_an_allowed_file_stays_a_violation() -> None:
    # Its PCR extend is all ones, so whoever sends the list can write any text beside it and the list still replays.
    hidden = ImaList().add(replace(ng(QEMU, hashlib.sha256(b"qemu").digest()), violation=True))
    required = policy(require=(Requirement(path=QEMU, of="debian12"),))
    assert judged(hidden, required) == ["runtime.violation", "runtime.required"]


KEYS = (
    SignerKey(name="vendor", pem=pem(RSA_KEY), paths=("/opt/**",)),
    SignerKey(name="build", pem=pem(EC_KEY)),
)
SIGNED: dict[str, tuple[ImaList, bool]] = {
    "RSA": (ImaList().signed("/opt/x", b"x", RSA_KEY), True),
    "EC": (ImaList().signed("/usr/x", b"x", EC_KEY), True),
    "fs-verity, version 3": (ImaList().signed("/usr/x", b"x", EC_KEY, version=3), True),
    "another's path": (ImaList().signed("/usr/x", b"x", RSA_KEY), False),
    "another key": (ImaList().signed("/opt/x", b"x", rsa.generate_private_key(65537, 2048)), False),
}


@pytest.mark.parametrize(("log", "good"), SIGNED.values(), ids=SIGNED)
def test_signed_files_pass_by_their_signers_key(log: ImaList, good: bool) -> None:
    assert judged(log, policy(keys=KEYS)) == ([] if good else ["runtime.file"])


DIGEST = hashlib.sha256(b"x").digest()
SIGNATURE = ima_signature(DIGEST, EC_KEY)
WRONG_SIGNATURES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "header alone": lambda: SIGNATURE[:9],
    "cut": lambda: SIGNATURE[:-1],
    "longer": lambda: SIGNATURE + b"\0",
    "another type": lambda: b"\x01" + SIGNATURE[1:],
    "version 1": lambda: SIGNATURE[:1] + b"\x01" + SIGNATURE[2:],
    "as version 3": lambda: SIGNATURE[:1] + b"\x03" + SIGNATURE[2:],
    "another hash": lambda: SIGNATURE[:2] + b"\x06" + SIGNATURE[3:],
    "SHA-1": lambda: SIGNATURE[:2] + b"\x02" + SIGNATURE[3:],
    "of another file": lambda: ima_signature(hashlib.sha256(b"y").digest(), EC_KEY),
}


@pytest.mark.parametrize("signature", WRONG_SIGNATURES.values(), ids=WRONG_SIGNATURES)
def test_what_is_no_signature_of_the_file_is_none(signature: Callable[[], bytes]) -> None:
    assert is_signed(SIGNATURE, b"sha256", DIGEST, EC_KEY.public_key())
    assert not is_signed(signature(), b"sha256", DIGEST, EC_KEY.public_key())


def test_a_file_cannot_pass_for_a_buffer() -> None:
    # ima-sig and ima-buf have the same fields and no hash covers the template's name; off the mount tree, a file is
    # measured by its bare name (ima_d_path).
    file = ng(".ima", hashlib.sha256(b"evil").digest())
    signed = ima_signature(hashlib.sha256(b"evil").digest(), EC_KEY)
    for extra in (b"", signed):
        log = ImaList().add(Line("ima-buf", (*file.data, extra), (*file.shown, extra.hex())))
        assert judged(log, policy(buffers={".ima": ()})) == ["runtime.buffer"]
        assert judged(log, policy(buffers={".ima": (sha256(extra),)})) == ["runtime.buffer"]


def test_buffers_are_allowed_by_name_and_content() -> None:
    log = ImaList().buffer(".ima", b"key")
    assert judged(log, policy(buffers={".ima": ()})) == []
    assert judged(log, policy(buffers={".ima": (sha256(b"key"),)})) == []
    assert judged(log, policy(buffers={".ima": (sha256(b"other"),)})) == ["runtime.buffer"]
    assert judged(log, policy(buffers={".platform": ()})) == ["runtime.buffer"]


def test_what_is_required_must_have_been_measured_from_its_set() -> None:
    compiled = policy(require=(Requirement(path=QEMU, of="debian12"),))
    assert judged(ImaList().file(QEMU, b"qemu"), compiled) == []
    assert judged(ImaList().file("/usr/bin/bash", b"bash"), compiled) == ["runtime.required"]
    assert judged(ImaList().file(QEMU, b"evil"), compiled) == ["runtime.file", "runtime.required"]


def test_states_add_up_over_increments() -> None:
    compiled = policy(require=(Requirement(path=QEMU, of="debian12"),))
    state = RuntimeState()
    for log in (ImaList().file(QEMU, b"qemu"), ImaList().file("/x", b"x"), ImaList().file("/y", b"y")):
        entries = parse_ascii(log.ascii())
        state = judge(compiled, state, entries, first=False, host="h", bank="sha256", pcrs=PCRS)
    assert state.failures == 2
    assert [reason[2] for reason in verdict(compiled, state, "h")] == [
        f"host h measured /x with {sha256(b'x')}",
        f"host h measured /y with {sha256(b'y')}",
    ]


def test_many_failures_are_counted_not_told() -> None:
    log = ImaList()
    for number in range(100):
        log.file(f"/x/{number}", b"x")
    found = told(log)
    assert len(found) == limits.RUNTIME_REASONS_MAX + 1
    assert "84 further failures" in found[-1][2]


def test_forged_signatures_cost_no_more_than_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    log, tried = ImaList(), 0
    for number in range(100):
        line = ng(f"/opt/{number}", hashlib.sha256(b"%d" % number).digest())
        log.add(Line("ima-sig", (*line.data, SIGNATURE), (*line.shown, SIGNATURE.hex())))

    def counted(*arguments: Any) -> bool:
        nonlocal tried
        tried += 1
        return is_signed(*arguments)

    monkeypatch.setattr("kms.evidence.ima.policy.is_signed", counted)
    assert len(told(log, policy(keys=KEYS))) == limits.RUNTIME_REASONS_MAX + 1
    assert tried == limits.RUNTIME_REASONS_MAX * len(KEYS)


def typed_aggregate() -> Line:
    plain = ImaList().boot_aggregate(PCRS).lines[0]
    return Line("ima-ngv2", (b"ima:" + plain.data[0], plain.data[1]), (f"ima:{plain.shown[0]}", plain.shown[1]))


AGGREGATES: dict[str, tuple[ImaList, list[str]]] = {
    "of the quoted PCRs": (ImaList().boot_aggregate(PCRS), []),
    "of other PCRs": (ImaList().boot_aggregate(PCRS | {4: bytes(32)}), ["runtime.boot_aggregate"]),
    "typed": (ImaList().add(typed_aggregate()), []),
    "missing": (ImaList().file("/usr/bin/bash", b"bash"), ["runtime.boot_aggregate"]),
    "an empty list": (ImaList(), ["runtime.boot_aggregate"]),
    "by SHA-1": (ImaList().add(ng("boot_aggregate", bytes(20), "sha1")), ["runtime.boot_aggregate"]),
    "by another bank": (ImaList().boot_aggregate(PCRS, "sha384"), ["runtime.boot_aggregate"]),
    "not first": (
        ImaList().file("/usr/bin/bash", b"bash").boot_aggregate(PCRS),
        ["runtime.boot_aggregate", "runtime.file"],
    ),
}


@pytest.mark.parametrize(("log", "reasons"), AGGREGATES.values(), ids=AGGREGATES)
def test_the_list_is_tied_to_the_boot(log: ImaList, reasons: list[str]) -> None:
    assert judged(log, first=True) == reasons


def test_old_kernels_may_be_allowed_in_words() -> None:
    log = ImaList().add(ng("boot_aggregate", bytes(20), "sha1"))
    assert judged(log, policy(sha1_boot_aggregate=True), first=True) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"excludes": ("/a/**/b",)}, "runtime.glob"),
        ({"excludes": ("/a/*b*",)}, "runtime.glob"),
        ({"keys": (SignerKey(name="k", pem="no PEM"),)}, "runtime.key"),
        ({"keys": (SignerKey(name="k", pem=pem(WEAK_KEY)),)}, "runtime.key"),
        ({"require": (Requirement(path="/nowhere", of="debian12"),)}, "runtime.require"),
        ({"require": (Requirement(path=QEMU, of="debian13"),)}, "runtime.require"),
    ],
)
def test_policies_that_cannot_be_right_are_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        policy(**changes)
    assert caught.value.code == code


PATTERNS = {
    "/a/b": ({"/a/b"}, {"/a", "/a/b/c", "/x/a/b"}),
    "/a/**": ({"/a/b", "/a/b/c"}, {"/a", "/ab/c", "a/b"}),
    "/a/*/c": ({"/a/b/c", "/a//c"}, {"/a/b/d/c", "/a/c"}),
    "/a/b*.so": ({"/a/b.so", "/a/bcd.so"}, {"/a/.so", "/a/b/c.so", "/a/b.so.1"}),
    "/*/b/**": ({"/a/b/c", "/x/b/c/d"}, {"/a/b", "/b/c"}),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_from_the_root(pattern: str) -> None:
    globs, (good, bad) = Globs((pattern,)), PATTERNS[pattern]
    assert {path for path in good | bad if globs.match(path.encode())} == good


@given(st.text("ab/*.", max_size=40), st.binary(max_size=60))
def test_matching_never_fails(pattern: str, path: bytes) -> None:
    try:
        globs = Globs((f"/{pattern}",))
    except BadRequest:
        return
    assert globs.match(path) in (True, False)
