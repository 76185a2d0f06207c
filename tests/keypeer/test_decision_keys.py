"""Keys that officers approve with, in files and in a SoftHSM token: the service verifies what each kind signs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from keypeer.decision_keys import OWN_FILE, TLS_FILE, TOKEN_FILE, SoftKey, open_decision_key
from keypeer.errors import StateError
from kms.approvals import approval_key, verifies
from tests.support.hsm import MODULE, SoftToken, blank_token

KINDS: dict[str, Callable[[], Any]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": Ed25519PrivateKey.generate,
}


def pem(key: Any, password: bytes = b"") -> bytes:
    lock = BestAvailableEncryption(password) if password else NoEncryption()
    data: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_key_in_a_file_signs_verifies(tmp_path: Path, kind: str) -> None:
    (tmp_path / TLS_FILE).write_bytes(pem(KINDS[kind]()))
    key = open_decision_key(tmp_path)
    assert verifies(approval_key(key.public_key()), b"decision", key.sign(b"decision"))


def test_a_key_apart_goes_before_the_certificates(tmp_path: Path) -> None:
    tls, own = KINDS["P-256"](), KINDS["Ed25519"]()
    (tmp_path / TLS_FILE).write_bytes(pem(tls))
    (tmp_path / OWN_FILE).write_bytes(pem(own))
    signature = open_decision_key(tmp_path).sign(b"decision")
    own.public_key().verify(signature, b"decision")
    (tmp_path / TOKEN_FILE).write_text("module = 1")
    with pytest.raises(StateError, match=r"identity\.token"):
        open_decision_key(tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"none", pem(KINDS["P-256"](), b"secret"), pem(X25519PrivateKey.generate()), None]
)
def test_files_without_a_key_to_sign_with(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "key.pem").write_bytes(data)
    with pytest.raises(StateError, match=r"identity\.key"):
        SoftKey(tmp_path / "key.pem")


# ── in a token ─────────────────────────────────────────────────────────────────────────────────────────────────

SIGN = """
from pathlib import Path
from keypeer.decision_keys import open_decision_key
key = open_decision_key(Path({folder!r}))
print(key.public_key().decode() + key.sign(b"decision").hex())
"""


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    """An officer's token, with keys of three kinds that other software made."""
    token = blank_token(tmp_path_factory.mktemp("token"))
    pins = ("--pin", secret(token, "pin"), "--so-pin", secret(token, "so-pin"))
    assert token.run("softhsm2-util", "--init-token", "--free", "--label", "olga", *pins).returncode == 0
    for number, kind in enumerate(("P-256", "P-384", "RSA"), 1):
        file = token.home / f"{kind}.pem"
        file.write_bytes(pem(KINDS[kind]()))
        options = ("--import", str(file), "--token", "olga", "--label", kind, "--id", f"a{number}")
        done = token.run("softhsm2-util", *options, "--pin", secret(token, "pin"))
        assert done.returncode == 0, done.stderr
    return token


def secret(token: SoftToken, name: str) -> str:
    return (token.home / name).read_text().strip()


def settings(made: SoftToken, folder: Path, **changes: str) -> None:
    values = {"module": MODULE, "token": "olga", "object": "P-256", "pin": f"file:{made.home / 'pin'}", **changes}
    (folder / TOKEN_FILE).write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA"])
def test_what_a_key_in_a_token_signs_verifies(token: SoftToken, tmp_path: Path, kind: str) -> None:
    settings(token, tmp_path, object=kind)
    public, _, signature = token.python(SIGN.format(folder=str(tmp_path))).strip().rpartition("\n")
    spki = approval_key(public.encode())
    assert verifies(spki, b"decision", bytes.fromhex(signature))
    assert not verifies(spki, b"another", bytes.fromhex(signature))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"object": "none"}, "identity.token"),
        ({"token": "none"}, "identity.token"),
        ({"module": "/nowhere.so"}, "identity.token"),
        ({"pin": "env:NO_SUCH_PIN"}, "identity.pin"),
        ({"pin": "file:/nowhere/pin"}, "identity.pin"),
        ({"pin": "482915"}, "identity.pin"),
    ],
)
def test_tokens_that_do_not_sign_say_why(token: SoftToken, tmp_path: Path, changes: dict[str, str], code: str) -> None:
    settings(token, tmp_path, **changes)
    told = token.python(
        "from keypeer.errors import StateError\n"
        "try:\n" + "".join(f"    {line}\n" for line in SIGN.format(folder=str(tmp_path)).strip().splitlines()) + "\n"
        "except StateError as error:\n    print(error.code, error)"
    )
    assert told.startswith(f"{code} ")
    assert secret(token, "pin") not in told
