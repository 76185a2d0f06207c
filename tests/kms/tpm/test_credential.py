"""MakeCredential against TPM2_ActivateCredential: swtpm's, and one in software for many keys."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from kms.tpm import constants as c
from kms.tpm.constants import P256, P384
from kms.tpm.credential import kdf_a, kdf_e, make_credential
from kms.tpm.public import Public, parse_public, parse_public_2b
from tests.support import tpm_bytes as t
from tests.support.credential import open_credential
from tests.support.simulated_host import SimulatedHost, shared_rsa_key
from tests.support.tpm2_tools import ToolsTpm, available

SECRET = bytes(range(32))

needs_swtpm = pytest.mark.skipif(not available(), reason="swtpm and tpm2-tools are not installed")


@pytest.fixture
def tpm() -> Iterator[ToolsTpm]:
    with tempfile.TemporaryDirectory(prefix="kp") as folder, ToolsTpm(Path(folder)) as running:
        yield running


@needs_swtpm
@pytest.mark.parametrize("algorithm", ["ecc", "ecc384", "rsa", "rsa3072"])
def test_real_tpm_opens_it(tpm: ToolsTpm, algorithm: str) -> None:
    ek = parse_public_2b(tpm.create_ek(algorithm))
    ak = parse_public_2b(tpm.create_ak())
    secret = os.urandom(ek.name_hash.size)
    assert tpm.activate(*make_credential(ek, ak.name, secret, os.urandom)) == secret


@needs_swtpm
def test_real_tpm_refuses_it_for_another_ak(tpm: ToolsTpm) -> None:
    # PYSEC-2022-184: EK and AK accepted in separate steps. Here an AK that isn't beside the EK gets nothing.
    ek = parse_public_2b(tpm.create_ek())
    tpm.create_ak()
    foreign = parse_public(SimulatedHost("iad-1").ak_public)
    assert tpm.activate(*make_credential(ek, foreign.name, SECRET, os.urandom)) is None


@needs_swtpm
def test_real_tpm_refuses_it_for_another_ek(tpm: ToolsTpm) -> None:
    tpm.create_ek()
    ak = parse_public_2b(tpm.create_ak())
    foreign = parse_public_2b(SimulatedHost("iad-1").ek_public)
    assert tpm.activate(*make_credential(foreign, ak.name, SECRET, os.urandom)) is None


@needs_swtpm
@pytest.mark.parametrize("algorithm", ["ecc", "ecc384"])
def test_ephemeral_point_with_leading_zeros(tpm: ToolsTpm, algorithm: str) -> None:
    ek = parse_public_2b(tpm.create_ek(algorithm))
    ak = parse_public_2b(tpm.create_ak())
    curve = {"ecc": P256, "ecc384": P384}[algorithm]
    scalar = next(
        d
        for d in range(2, 5000)
        if ec.derive_private_key(d, curve.pyca).public_key().public_numbers().x >> (curve.size - 1) * 8 == 0
    )
    credential = make_credential(ek, ak.name, SECRET, lambda size: (scalar - 1).to_bytes(size, "big"))
    assert tpm.activate(*credential) == SECRET


def test_software_tpm_opens_many() -> None:
    # 600 keys: shared secrets and points with leading zero octets (1 in 256) are among them.
    ak_name = parse_public(SimulatedHost("fra-1").ak_public).name
    for _ in range(600):
        key = ec.generate_private_key(ec.SECP256R1())
        public = t.ecc_public(key.public_key(), t.EK_ATTRIBUTES, policy=t.EK_POLICY, symmetric=t.aes_cfb(128))
        credential = make_credential(parse_public(public), ak_name, SECRET, os.urandom)
        assert open_credential(key, ak_name, *credential) == SECRET


def test_software_tpm_opens_rsa() -> None:
    key = shared_rsa_key(0)
    ak_name = parse_public(SimulatedHost("fra-1").ak_public).name
    public = t.rsa_public(key.public_key(), t.EK_ATTRIBUTES, policy=t.EK_POLICY, symmetric=t.aes_cfb(128))
    credential = make_credential(parse_public(public), ak_name, SECRET, os.urandom)
    assert open_credential(key, ak_name, *credential) == SECRET
    with pytest.raises(ValueError, match="another key"):
        open_credential(key, ak_name[:-1] + b"\0", *credential)


def endorsement(**changes: object) -> Public:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    fields: dict[str, object] = {"attributes": t.EK_ATTRIBUTES, "symmetric": t.aes_cfb(128)}
    return parse_public(t.ecc_public(key, **(fields | changes)))  # type: ignore[arg-type]  # keywords of ecc_public


@pytest.mark.parametrize(
    "public",
    [
        endorsement(attributes=t.EK_ATTRIBUTES & ~c.RESTRICTED),
        endorsement(attributes=t.EK_ATTRIBUTES & ~c.DECRYPT | c.SIGN),
        endorsement(symmetric=t.NO_SYMMETRIC),
    ],
    ids=["not restricted", "signs", "no symmetric algorithm"],
)
def test_only_for_endorsement_keys(public: Public) -> None:
    with pytest.raises(ValueError, match="was checked"):
        make_credential(public, bytes(34), SECRET, os.urandom)


@pytest.mark.parametrize("size", [0, 33])
def test_secret_size(size: int) -> None:
    with pytest.raises(ValueError, match="1 to 32 bytes"):
        make_credential(endorsement(), bytes(34), bytes(size), os.urandom)


def test_kdfs_take_more_than_one_block() -> None:
    assert kdf_a(c.SHA256, b"k", b"L", b"u", 512)[:32] != kdf_a(c.SHA256, b"k", b"L", b"u", 256)
    assert len(kdf_e(c.SHA256, b"z", b"L\0", b"u", b"v", 512)) == 64
    assert kdf_e(c.SHA256, b"z", b"L\0", b"u", b"v", 256) == c.SHA256.digest(t.u32(1) + b"z" + b"L\0" + b"uv")
