"""The binding key: its policy, what it opens, and when it doesn't."""

from __future__ import annotations

from typing import Literal

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from keypeer.errors import TpmError
from keypeer.tpm import BindingBlob, Tpm, create_binding_key, pcr_extend, pcr_policy, pcr_read, rsa_decrypt
from keypeer.tpm.binding import loaded_binding_key, storage_key
from keypeer.tpm.device import translated
from keypeer.wire.profile import BOOT_PCRS
from kms.tpm.checks import binding_key_flaws
from kms.tpm.constants import BANKS, SHA256
from kms.tpm.public import parse_public_2b
from kms.tpm.selection import pcr_policy_digest
from tests.support.swtpm import SwTpm

SECRET = bytes(range(32))
OaepHash = Literal["sha1", "sha256"]


def bound(tpm: Tpm, bank: str = "sha256") -> BindingBlob:
    """A key bound to the boot PCRs as they are."""
    return create_binding_key(tpm, pcr_policy(bank, pcr_read(tpm, bank, BOOT_PCRS)))


def encapsulated(blob: BindingBlob, oaep_hash: OaepHash = "sha256", secret: bytes = SECRET) -> bytes:
    """As the service's HSM does it."""
    key = parse_public_2b(blob.public).key()
    assert isinstance(key, rsa.RSAPublicKey)
    algorithm = hashes.SHA256() if oaep_hash == "sha256" else hashes.SHA1()  # noqa: S303 - what SoftHSM can
    return key.encrypt(secret, padding.OAEP(padding.MGF1(algorithm), algorithm, label=None))


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_the_policy_is_what_the_service_computes(tpm: Tpm, bank: str) -> None:
    values = pcr_read(tpm, bank, BOOT_PCRS)
    policy = pcr_policy(bank, values)
    assert policy == pcr_policy_digest(SHA256, BANKS[bank], values)
    blob = create_binding_key(tpm, policy)
    assert parse_public_2b(blob.public).auth_policy == policy
    assert blob.bound_to(policy)
    assert not blob.bound_to(bytes(32))


def test_the_policy_is_what_the_tpm_computes(tpm: Tpm) -> None:
    from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2_SE, TPMT_SYM_DEF

    with translated():
        no_cipher = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
        session = tpm.esys.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.TRIAL, no_cipher, TPM2_ALG.SHA256)
        tpm.esys.policy_pcr(session, b"", "sha256:1,4,7,23")
        digest = tpm.esys.policy_get_digest(session)
        tpm.flush(session)
    assert bytes(digest) == pcr_policy("sha256", pcr_read(tpm, "sha256", (23, 1, 7, 4)))


def test_the_key_passes_the_service_s_checks(tpm: Tpm) -> None:
    assert binding_key_flaws(parse_public_2b(bound(tpm).public)) == ()


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
@pytest.mark.parametrize("oaep_hash", ["sha1", "sha256"])
def test_it_opens_what_was_encapsulated(tpm: Tpm, bank: str, oaep_hash: OaepHash) -> None:
    blob = bound(tpm, bank)
    ciphertext = encapsulated(blob, oaep_hash)
    with rsa_decrypt(tpm, blob, ciphertext, oaep_hash=oaep_hash, bank=bank, pcrs=BOOT_PCRS) as opened:
        assert bytes(opened.view()) == SECRET
    assert tpm.handles(0x80000000) == []
    assert tpm.handles(0x02000000) == []


def test_it_stays_good_over_a_reboot_into_the_same_state(swtpm: SwTpm) -> None:
    with swtpm.open() as tpm:
        blob = bound(tpm)
    swtpm.reboot()
    with swtpm.open() as tpm:
        opened = rsa_decrypt(tpm, blob, encapsulated(blob), oaep_hash="sha256", bank="sha256", pcrs=BOOT_PCRS)
        assert bytes(opened.view()) == SECRET


@pytest.mark.parametrize("pcr", BOOT_PCRS)
def test_it_refuses_once_a_boot_pcr_moved(tpm: Tpm, pcr: int) -> None:
    blob = bound(tpm)
    pcr_extend(tpm, "sha256", pcr, b"\x01" * 32)
    with pytest.raises(TpmError) as caught:
        rsa_decrypt(tpm, blob, encapsulated(blob), oaep_hash="sha256", bank="sha256", pcrs=BOOT_PCRS)
    assert caught.value.code == "tpm.policy"
    assert "boot PCR moved since" in caught.value.detail
    assert tpm.handles(0x80000000) == []


def test_pcrs_that_move_while_running_don_t_matter(tpm: Tpm) -> None:
    blob = bound(tpm)
    pcr_extend(tpm, "sha256", 10, b"\x01" * 32)
    pcr_extend(tpm, "sha256", 15, b"\x01" * 32)
    opened = rsa_decrypt(tpm, blob, encapsulated(blob), oaep_hash="sha256", bank="sha256", pcrs=BOOT_PCRS)
    assert bytes(opened.view()) == SECRET


def test_a_policy_over_fewer_pcrs_doesn_t_open_it(tpm: Tpm) -> None:
    blob = bound(tpm)
    with pytest.raises(TpmError) as caught:
        rsa_decrypt(tpm, blob, encapsulated(blob), oaep_hash="sha256", bank="sha256", pcrs=(0, 1))
    assert caught.value.code == "tpm.policy"


def test_without_the_policy_the_password_doesn_t_open_it(tpm: Tpm) -> None:
    from tpm2_pytss import TPM2_ALG, TPM2B_PUBLIC_KEY_RSA, TPMT_RSA_DECRYPT

    blob = bound(tpm)
    ciphertext = TPM2B_PUBLIC_KEY_RSA(encapsulated(blob))
    with (
        storage_key(tpm) as parent,
        loaded_binding_key(tpm, parent, blob) as key,
        pytest.raises(TpmError) as caught,
        translated(),
    ):
        tpm.esys.rsa_decrypt(key, ciphertext, TPMT_RSA_DECRYPT(scheme=TPM2_ALG.NULL), b"")
    assert "0x12F" in caught.value.detail  # TPM_RC_AUTH_UNAVAILABLE, TPM 2.0 Part 2 §6.6.3


@pytest.mark.parametrize(
    "ciphertext",
    [bytes(256), b"\xff" * 256, b"\x01" * 100, b""],
    ids=["zeros", "larger than the modulus", "short", "empty"],
)
def test_what_nobody_encapsulated_doesn_t_open(tpm: Tpm, ciphertext: bytes) -> None:
    with pytest.raises(TpmError) as caught:
        rsa_decrypt(tpm, bound(tpm), ciphertext, oaep_hash="sha256", bank="sha256", pcrs=BOOT_PCRS)
    assert caught.value.code.startswith("tpm.")
    assert tpm.handles(0x80000000) == []
