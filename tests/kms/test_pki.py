"""Certificates put together from signed parts, checked by pyca and by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from kms import pki
from kms.domain.staff import Role
from kms.errors import BadRequest, Refused

NOW = 1_800_000_000
CA_KEY = ec.generate_private_key(ec.SECP256R1())
LEAF_KEY = ec.generate_private_key(ec.SECP256R1())


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign(tbs: bytes) -> bytes:
    return pki.assemble(tbs, CA_KEY.sign(tbs, ec.ECDSA(hashes.SHA256())))


CA = sign(pki.ca_tbs(spki(CA_KEY), serial=b"\xff" * 16, now=NOW))


def client(role: Role = "host", name: str = "fra-1") -> bytes:
    return sign(pki.client_tbs(spki(LEAF_KEY), CA, role=role, name=name, serial=b"\x07" * 16, now=NOW, life=86_400))


def test_openssl_accepts_the_chain(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(pki.to_pem(CA))
    (tmp_path / "client.pem").write_text(pki.to_pem(client()))
    server = sign(pki.server_tbs(spki(LEAF_KEY), CA, hosts=("kms.example", "127.0.0.1"), serial=b"\x08" * 16, now=NOW))
    (tmp_path / "server.pem").write_text(pki.to_pem(server))
    for purpose, name in (("sslclient", "client.pem"), ("sslserver", "server.pem")):
        command = [
            "openssl",
            "verify",
            "-x509_strict",
            "-purpose",
            purpose,
            "-attime",
            str(NOW),
            "-CAfile",
            "ca.pem",
            name,
        ]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.stdout == f"{name}: OK\n", result.stderr


@pytest.mark.parametrize("role", ["host", "officer", "operator", "auditor"])
def test_a_certificate_says_who_it_is(role: Role) -> None:
    certificate = client(role, "some.one-1")
    identity = pki.read_identity(certificate)
    assert (identity.role, identity.name) == (role, "some.one-1")
    assert identity.not_before < NOW < identity.not_after == NOW + 86_400
    assert identity.sha256 == x509.load_der_x509_certificate(certificate).fingerprint(hashes.SHA256())


def test_a_certificate_without_a_role_is_nobody() -> None:
    with pytest.raises(Refused, match=r"auth\.certificate_role"):
        pki.read_identity(CA)


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whatever")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .sign(key, algorithm)
        .public_bytes(serialization.Encoding.PEM)
    )


def test_a_csr_gives_its_key_when_its_signature_holds() -> None:
    assert pki.csr_public_key(csr(LEAF_KEY)) == spki(LEAF_KEY)


def test_a_csr_that_was_altered_is_refused() -> None:
    pem = csr(LEAF_KEY)
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    altered = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(BadRequest, match=r"enrol\.csr"):
        pki.csr_public_key(altered)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"not a request",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        csr(ed25519.Ed25519PrivateKey.generate()),
        csr(rsa.generate_private_key(65537, 1024)),  # noqa: S505 - too short on purpose
        csr(ec.generate_private_key(ec.SECP521R1())),
    ],
    ids=["empty", "text", "garbage", "ed25519", "rsa-1024", "p-521"],
)
def test_a_csr_that_will_not_do_is_refused(pem: bytes) -> None:
    with pytest.raises(BadRequest, match=r"enrol\.csr"):
        pki.csr_public_key(pem)
