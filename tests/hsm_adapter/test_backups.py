"""Backups of long-lived keys, and their restore into a blank token, with real SoftHSM tokens."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding, aes_key_wrap_with_padding

from hsm_adapter import canonical
from hsm_adapter import protocol as p
from tests.hsm_adapter.test_provision import keys_of
from tests.support import hsm

SHA1 = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303  # SoftHSM 2.6 has no other
BACKED_UP = {"session", "kek-1", "record-mac-1", "ca", "geo", "audit", "appraisal"}
ROTATED: tuple[p.VersionedKey, ...] = ("kek", "record-mac", "session", "ca", "audit")


def der_of(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def pem_of(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class Lost:
    """A token that is gone, and what is left of it: backups, records and sessions made with its keys."""

    token: hsm.SoftToken
    backups: Path
    key: rsa.RSAPrivateKey
    records: tuple[p.KeyRecord, ...]
    vm_keys: tuple[bytes, ...]
    session: p.SessionRecord
    before: p.Description


def vm_key(client: hsm.Client, host: hsm.Host, record: p.KeyRecord) -> bytes:
    session = client.one(host.open_session(os.urandom(16)), p.OpenedSession)
    operation = p.Rewrap(record, session.record, 1, 2_000_000_000, 300)
    return host.vm_key(session, operation, client.one(operation, p.Released))


def created(client: hsm.Client, number: int) -> p.KeyRecord:
    return client.one(p.CreateKey(p.NewKey(f"vm-{number}", number, 64, b"attributes")), p.KeyRecord)


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory, host: hsm.Host) -> Lost:
    """Provisioned with a recovery key, with a second version of some keys."""
    home = tmp_path_factory.mktemp("lost")
    key, backups = rsa.generate_private_key(65537, 3072), home / "backups"
    (home / "recovery.pem").write_bytes(pem_of(key))
    token = hsm.blank_token(home / "token")
    token.provision(
        *("--so-pin", f"file:{token.home / 'so-pin'}"),
        *("--recovery", str(home / "recovery.pem"), "--backups", str(backups)),
    )
    with hsm.running_worker(token, home / "worker") as running:
        client = running.client()
        records = [created(client, 1)]
        for name in ROTATED:
            made = client.one(p.MakeVersion(name, 2), p.MadeVersion)
            assert made.backup
            (backups / f"{name}-2.json").write_bytes(made.backup)
        records.append(created(client, 2))
        return Lost(
            token,
            backups,
            key,
            tuple(records),
            tuple(vm_key(client, host, record) for record in records),
            client.one(host.open_session(os.urandom(16)), p.OpenedSession).record,
            client.one(p.Describe(), p.Description),
        )


def restore(token: hsm.SoftToken, backups: Path, der: bytes, *more: str) -> subprocess.CompletedProcess[bytes]:
    """The command, on ``token``."""
    command = (sys.executable, "-m", "hsm_adapter.restore", "--module", hsm.MODULE, "--label", hsm.LABEL)
    return subprocess.run(
        [*command, "--pin", token.pin, "--so-pin", f"file:{token.home / 'so-pin'}", "--backups", str(backups), *more],
        input=der,
        env={**os.environ, **token.environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


def restored(token: hsm.SoftToken, backups: Path, der: bytes, *more: str) -> dict[str, Any]:
    done = restore(token, backups, der, *more)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def folder(lost: Lost, tmp_path: Path) -> Path:
    """A copy of the backups that the test may change."""
    return Path(shutil.copytree(lost.backups, tmp_path / "backups"))


def fingerprint(spki: bytes) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    return digest.finalize().hex()


# ── taking them ────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_key_is_backed_up_as_it_is_made(lost: Lost) -> None:
    files = {path.stem: path for path in lost.backups.iterdir()}
    assert set(files) == BACKED_UP | {f"{name}-2" for name in ROTATED}
    for name in BACKED_UP:
        assert stat.S_IMODE(files[name].stat().st_mode) == 0o600
    for name, path in files.items():
        document = json.loads(path.read_bytes())
        assert bool(document["wrapped"]) == (document["key"] != "audit"), name  # SoftHSM 2.6 wraps no Ed25519


def test_a_backup_opens_to_the_key_with_other_tools(lost: Lost) -> None:
    """By the README's words: OAEP, then RFC 5649. The MAC of a record proves which key it is."""

    def opened(name: str) -> bytes:
        document = json.loads((lost.backups / f"{name}.json").read_bytes())
        transport = lost.key.decrypt(base64.b64decode(document["transport"]), SHA1)
        return aes_key_unwrap_with_padding(transport, base64.b64decode(document["wrapped"]))

    record = lost.records[0]
    key = aes_key_unwrap_with_padding(opened("kek-1"), record.wrapped)
    assert key == lost.vm_keys[0]
    padded = opened("ca-2")  # SoftHSM zero-pads to 8 bytes before it wraps
    pair = serialization.load_der_private_key(padded[: 2 + padded[1]], None)
    public = pair.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert public == lost.before.signing_versions["ca"][2]


def test_backed_up_keys_stay_in_the_token_as_others_do(lost: Lost, token: hsm.SoftToken) -> None:
    """All but CKA_NEVER_EXTRACTABLE, which would be a lie."""
    ours = {label: flags for label, flags in keys_of(lost.token).items() if label != "keypeer/import"}
    usual = keys_of(token)
    for label, flags in ours.items():
        first = label if label in usual else label.removesuffix("/2") + ("/1" if label[8:11] in ("kek", "rec") else "")
        assert flags == [flag for flag in usual[first] if flag != "NEVER_EXTRACTABLE"], label


def test_without_a_recovery_key_there_are_no_backups(own_client: hsm.Client) -> None:
    for name in ROTATED:
        made = own_client.one(p.MakeVersion(name, 2), p.MadeVersion)
        assert (made.made, made.backup) == (True, b"")


def test_no_key_is_made_whose_backup_would_be_lost(tmp_path: Path) -> None:
    token = hsm.blank_token(tmp_path / "t")
    (tmp_path / "recovery.pem").write_bytes(pem_of(rsa.generate_private_key(65537, 3072)))
    command = (sys.executable, "-m", "hsm_adapter.provision", "--module", hsm.MODULE, "--label", hsm.LABEL)
    (tmp_path / "file").touch()
    for where in ((), ("--backups", str(tmp_path / "file"))):
        done = token.run(
            *(*command, "--pin", token.pin, "--so-pin", f"file:{token.home / 'so-pin'}"),
            *("--recovery", str(tmp_path / "recovery.pem"), *where),
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("hsm.backups")
        assert keys_of(token).keys() <= {"keypeer/new"}


@pytest.mark.parametrize("make", [lambda: rsa.generate_private_key(65537, 2048), lambda: None], ids=["small", "none"])
def test_a_strange_recovery_key_is_refused(
    token: hsm.SoftToken, tmp_path: Path, make: Callable[[], rsa.RSAPrivateKey | None]
) -> None:
    key = make()
    (tmp_path / "recovery.pem").write_bytes(pem_of(key) if key else b"nonsense")
    command = (sys.executable, "-m", "hsm_adapter.provision", "--module", hsm.MODULE, "--label", hsm.LABEL)
    done = token.run(*command, "--pin", token.pin, "--recovery", str(tmp_path / "recovery.pem"))
    assert done.returncode == 1
    assert done.stderr.startswith("hsm.recovery_key")


def test_the_recovery_key_is_not_changed_silently(lost: Lost, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(pem_of(rsa.generate_private_key(65537, 3072)))
    command = (sys.executable, "-m", "hsm_adapter.provision", "--module", hsm.MODULE, "--label", hsm.LABEL)
    done = lost.token.run(*command, "--pin", lost.token.pin, "--recovery", str(tmp_path / "other.pem"))
    assert done.returncode == 1
    assert done.stderr.startswith("hsm.recovery_key")


# ── restoring ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_blank_token_opens_what_was_made_before(lost: Lost, host: hsm.Host, tmp_path: Path) -> None:
    token, backups = hsm.blank_token(tmp_path / "t"), folder(lost, tmp_path)
    done = restored(token, backups, der_of(lost.key))
    assert done["initialised"]
    assert (done["lost"], done["made"]) == (["keypeer/audit", "keypeer/audit/2"], ["keypeer/audit/3", "keypeer/import"])
    assert len(done["restored"]) == len(list(lost.backups.iterdir())) - 2
    assert done["signers"] == [fingerprint(lost.before.signing_versions["session"][1])]
    with hsm.running_worker(token, tmp_path / "worker") as running:
        client = running.client()
        assert [vm_key(client, host, record) for record in lost.records] == list(lost.vm_keys)
        for record in lost.records:
            client.one(p.Rewrap(record, lost.session, 1, 2_000_000_000, 300), p.Released)
        assert client.one(p.SelfTest(), p.SelfTestResult).passed
        after = client.one(p.Describe(), p.Description)
        assert (after.kek_versions, after.mac_key_versions) == ((1, 2), (1, 2))
        for name in ("ca", "geo", "appraisal", "session"):
            assert after.signing_versions[name] == lost.before.signing_versions[name]
        assert list(after.signing_versions["audit"]) == [3], "no number comes back as another key"
        signature = client.one(p.Sign("ca", b"data", 1), p.Signature).signature
        public = serialization.load_der_public_key(lost.before.signing_versions["ca"][1])
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(signature, b"data", ec.ECDSA(hashes.SHA256()))
        assert client.one(p.MakeVersion("kek", 3), p.MadeVersion).backup, "and goes on backing up"
        assert client.one(p.ReadAnchor(), p.Anchor).size == 0, "what the token remembered is gone with it"


def test_restored_keys_cannot_leave(lost: Lost, tmp_path: Path) -> None:
    token = hsm.blank_token(tmp_path / "t")
    restored(token, folder(lost, tmp_path), der_of(lost.key))
    found = keys_of(token)
    del found["keypeer/import"], found["keypeer/audit/3"]
    before = keys_of(lost.token)
    assert found == {label: before[label] for label in found}


def test_a_second_restore_finds_everything_there(lost: Lost, tmp_path: Path) -> None:
    token, backups = hsm.blank_token(tmp_path / "t"), folder(lost, tmp_path)
    first = restored(token, backups, der_of(lost.key))
    before = keys_of(token)
    again = restored(token, backups, der_of(lost.key))
    assert (again["initialised"], again["restored"], again["made"]) == (False, [], [])
    assert again["present"] == sorted([*first["restored"], "keypeer/audit/3"])
    assert keys_of(token) == before


def test_a_restore_killed_on_the_way_goes_on(lost: Lost, host: hsm.Host, tmp_path: Path) -> None:
    """Each run dies a few calls later than the one before began; the last one finds nothing left to do, or does it."""
    token, backups = hsm.blank_token(tmp_path / "t"), folder(lost, tmp_path)
    code = f"""
import sys
{hsm.DIE_BEFORE}
from hsm_adapter import restore
die_before(cryptoki.Module({hsm.MODULE!r}), int(sys.argv.pop(1)))
sys.exit(restore.main())
"""
    options = ("--module", hsm.MODULE, "--label", hsm.LABEL, "--pin", token.pin, "--backups", str(backups))
    died = 0
    for number in range(5, 400, 9):
        done = subprocess.run(
            [sys.executable, "-c", code, str(number), *options, "--so-pin", f"file:{token.home / 'so-pin'}"],
            input=der_of(lost.key),
            env={**os.environ, **token.environment},
            capture_output=True,
            timeout=60,
            check=False,
        )
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        died += 1
    assert died >= 3
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert {*answer["restored"], *answer["present"]} >= {f"keypeer/{name}" for name in ("kek/1", "kek/2", "ca", "ca/2")}
    with hsm.running_worker(token, tmp_path / "worker") as running:
        client = running.client()
        assert [vm_key(client, host, record) for record in lost.records] == list(lost.vm_keys)
        assert client.one(p.SelfTest(), p.SelfTestResult).passed
        assert keys_of(token).keys().isdisjoint({"keypeer/new"})


def test_a_token_with_other_keys_is_left_alone(lost: Lost, token: hsm.SoftToken, tmp_path: Path) -> None:
    before = keys_of(token)
    done = restore(token, folder(lost, tmp_path), der_of(lost.key))
    assert done.returncode == 1
    assert done.stderr.startswith(b"hsm.label_taken: the token has another keypeer/")
    assert keys_of(token) == before


def changed(field: str, value: Callable[[str], str], name: str = "kek-1") -> Callable[[Path], None]:
    def change(backups: Path) -> None:
        path = backups / f"{name}.json"
        document = json.loads(path.read_bytes())
        document[field] = value(document[field])
        path.write_text(json.dumps(document))

    return change


def flipped(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(data).decode()


def renumbered(backups: Path) -> None:
    """One KEK's backup under another's number."""
    document = json.loads((backups / "kek-1.json").read_bytes())
    (backups / "kek-3.json").write_text(json.dumps({**document, "version": 3}))


def unsigned_newest(backups: Path) -> None:
    """A KEK that the attacker knows, wrapped to the recovery key, whose public half is no secret, and signed by a key
    of his own that says it is the session key's next version."""
    document = json.loads((backups / "kek-1.json").read_bytes())
    public = serialization.load_pem_public_key((backups.parent / "recovery.pem").read_bytes())
    assert isinstance(public, rsa.RSAPublicKey)
    transport, key = os.urandom(32), ec.generate_private_key(ec.SECP256R1())
    signer = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for name, public_key in (("kek", b""), ("session", signer)):
        wraps = public.encrypt(transport, SHA1), aes_key_wrap_with_padding(transport, os.urandom(32))
        text = canonical.key_backup_bytes(name, 9, "sha1", *wraps, public_key, document["recovery"], signer)
        forged = {
            **document,
            "key": name,
            "version": 9,
            "transport": base64.b64encode(wraps[0]).decode(),
            "wrapped": base64.b64encode(wraps[1]).decode(),
            "public_key": base64.b64encode(public_key).decode(),
            "signer": base64.b64encode(signer).decode(),
            "signature": base64.b64encode(key.sign(text, ec.ECDSA(hashes.SHA256()))).decode(),
        }
        (backups / f"{name}-9.json").write_text(json.dumps(forged))


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "key": (changed("key", lambda _: "record-mac", "kek-2"), "hsm.backups"),  # there are two of it then
    "version": (changed("version", lambda _: "7"), "hsm.backups"),  # a string
    "oaep_hash": (changed("oaep_hash", lambda _: "sha256"), "hsm.backup_forged"),
    "transport": (changed("transport", flipped), "hsm.backup_forged"),
    "wrapped": (changed("wrapped", flipped), "hsm.backup_forged"),
    "public_key": (changed("public_key", flipped, "ca"), "hsm.backup_forged"),
    "recovery": (changed("recovery", lambda text: text[::-1]), "hsm.backups"),
    "signer": (changed("signer", flipped), "hsm.backup_forged"),
    "signature": (changed("signature", flipped), "hsm.backup_forged"),
    "format": (changed("format", lambda _: "keypeer-key-backup/2"), "hsm.backups"),
    "another number": (renumbered, "hsm.backup_forged"),
    "an attacker's newest KEK": (unsigned_newest, "hsm.backup_forged"),
    "no KEK": (lambda backups: [path.unlink() for path in backups.glob("kek-*")] and None, "hsm.backups"),
    "two of one": (lambda backups: shutil.copy(backups / "ca.json", backups / "x.json") and None, "hsm.backups"),
    "no JSON": (lambda backups: (backups / "x.json").write_text("{") and None, "hsm.backups"),
    "huge": (lambda backups: (backups / "x.json").write_text(" " * 10_000) and None, "hsm.backups"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_spoiled_backups_are_refused_before_anything_is_made(lost: Lost, tmp_path: Path, how: str) -> None:
    token, backups = hsm.blank_token(tmp_path / "t"), folder(lost, tmp_path)
    shutil.copy(lost.backups.parent / "recovery.pem", tmp_path / "recovery.pem")
    spoil, code = SPOILED[how]
    spoil(backups)
    done = restore(token, backups, der_of(lost.key))
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"{code}: ")
    assert keys_of(token) == {}


def test_a_fingerprint_kept_elsewhere_decides_whom_to_trust(lost: Lost, tmp_path: Path) -> None:
    token, backups = hsm.blank_token(tmp_path / "t"), folder(lost, tmp_path)
    refused = restore(token, backups, der_of(lost.key), "--trust", "00" * 32)
    assert refused.stderr.startswith(b"hsm.backup_forged")
    assert keys_of(token) == {}
    right = fingerprint(lost.before.signing_versions["session"][1])
    assert restored(token, backups, der_of(lost.key), "--trust", right)["restored"]


@pytest.mark.parametrize("size", [2048, 3072])
def test_another_recovery_key_opens_nothing(lost: Lost, tmp_path: Path, size: int) -> None:
    token = hsm.blank_token(tmp_path / "t")
    other = rsa.generate_private_key(65537, size)
    done = restore(token, lost.backups, der_of(other))
    assert done.returncode == 1
    assert done.stderr.startswith(b"hsm.recovery_key" if size == 2048 else b"hsm.backups")
    assert not list(token.tokens.iterdir()) or keys_of(token) == {}


@pytest.mark.parametrize("der", [b"", b"nonsense", b"0" * 20_000])
def test_no_key_on_standard_input(lost: Lost, tmp_path: Path, der: bytes) -> None:
    token = hsm.blank_token(tmp_path / "t")
    done = restore(token, lost.backups, der)
    assert (done.returncode, done.stderr.startswith(b"hsm.recovery_key")) == (1, True)
    assert not list(token.tokens.iterdir()), "nothing was initialised"
