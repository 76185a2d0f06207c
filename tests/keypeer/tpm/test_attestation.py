"""Quotes and certifications by swtpm, judged by the service's parsers and pyca."""

from __future__ import annotations

import hashlib
import os
import subprocess
from typing import Any

import pytest

from keypeer.errors import TpmError
from keypeer.tpm import (
    Boot,
    Tpm,
    attestation_key,
    certify,
    create_binding_key,
    nv_certify,
    pcr_extend,
    pcr_policy,
    pcr_read,
    quote,
    write_geo_digest,
)
from keypeer.tpm.binding import loaded_binding_key, storage_key
from keypeer.wire.encoding import b64decode
from keypeer.wire.messages import SignedAttest
from keypeer.wire.profile import GEO_NV_ATTRIBUTES_LOCKED, GEO_NV_INDEX, GEO_NV_SIZE
from kms.tpm.attest import parse_certify, parse_nv_certify, parse_quote
from kms.tpm.checks import AttestationKey, check_attestation_key
from kms.tpm.nv import NvPublic
from kms.tpm.public import parse_public_2b
from tests.support.swtpm import SwTpm

NONCE = bytes(range(32))


def ak_of(tpm: Tpm) -> tuple[Any, AttestationKey]:
    handle, public = attestation_key(tpm)
    return handle, check_attestation_key(parse_public_2b(public))


def verified(ak: AttestationKey, signed: SignedAttest) -> bytes:
    """The TPMS_ATTEST, once the AK's signature over it holds."""
    attest = b64decode(signed.attest)
    assert ak.flaw(attest, b64decode(signed.signature)) is None
    return attest


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
@pytest.mark.parametrize("pcrs", [(0,), tuple(range(8)), tuple(range(24)), (23, 4, 7)], ids=str)
def test_a_quote_verifies_and_its_values_digest_to_it(tpm: Tpm, bank: str, pcrs: tuple[int, ...]) -> None:
    pcr_extend(tpm, bank, 4, hashlib.new(bank, b"loader").digest())
    handle, ak = ak_of(tpm)
    made = quote(tpm, handle, NONCE, bank, pcrs)
    attest = parse_quote(verified(ak, made.signed))
    assert attest.extra_data == NONCE
    assert [selected.pcrs for selected in attest.info.selections] == [tuple(sorted(pcrs))]
    assert attest.info.pcr_digest == hashlib.sha256(made.values).digest()
    assert made.values == b"".join(pcr_read(tpm, bank, pcrs)[pcr] for pcr in sorted(pcrs))


def test_a_quote_tells_the_boot(swtpm: SwTpm) -> None:
    boots = []
    for _ in range(3):
        with swtpm.open() as tpm:
            handle, ak = ak_of(tpm)
            made = quote(tpm, handle, NONCE, "sha256", [0])
            clock = parse_quote(verified(ak, made.signed)).clock_info
            assert made.boot == Boot(clock.reset_count, clock.restart_count)
            boots.append(made.boot.reset_count)
        swtpm.reboot()
    assert boots == [boots[0], boots[0] + 1, boots[0] + 2]


class Restless:
    """An ESAPI context under which PCR 15 moves before each of the first ``moves`` quotes."""

    def __init__(self, tpm: Tpm, moves: int) -> None:
        self._esys = tpm.esys
        self._moves = moves
        self.quotes = 0

    def __getattr__(self, name: str) -> Any:
        if name != "quote":
            return getattr(self._esys, name)
        return self._quote

    def _quote(self, *arguments: Any) -> Any:
        self.quotes += 1
        if self.quotes <= self._moves:
            pcr_extend(Tpm(self._esys), "sha256", 15, bytes([self.quotes] * 32))
        return self._esys.quote(*arguments)


def test_a_pcr_that_moves_between_read_and_quote_is_read_again(tpm: Tpm) -> None:
    handle, ak = ak_of(tpm)
    restless = Restless(tpm, moves=2)
    made = quote(Tpm(restless), handle, NONCE, "sha256", range(16))
    assert restless.quotes == 3
    assert parse_quote(verified(ak, made.signed)).info.pcr_digest == hashlib.sha256(made.values).digest()


def test_pcrs_that_never_settle_are_busy(tpm: Tpm) -> None:
    handle, _ = ak_of(tpm)
    with pytest.raises(TpmError) as caught:
        quote(Tpm(Restless(tpm, moves=99)), handle, NONCE, "sha256", range(16))
    assert caught.value.code == "tpm.busy"


def test_a_bank_that_isn_t_allocated_is_told(swtpm: SwTpm) -> None:
    environment = os.environ | {"TPM2TOOLS_TCTI": swtpm.tcti, "TSS2_LOG": "all+NONE"}
    subprocess.run(["tpm2_pcrallocate", "sha256:all+sha384:none"], env=environment, check=True, capture_output=True)
    swtpm.reboot()
    with swtpm.open() as tpm:
        assert len(pcr_read(tpm, "sha256", range(24))) == 24
        with pytest.raises(TpmError) as caught:
            pcr_read(tpm, "sha384", [0])
    assert caught.value.code == "tpm.bank"
    assert "tpm2_pcrallocate" in caught.value.hint


def test_the_geo_index_is_certified_locked_and_whole(tpm: Tpm) -> None:
    digest = hashlib.sha256(b"tag").digest()
    write_geo_digest(tpm, digest)
    handle, ak = ak_of(tpm)
    attest = parse_nv_certify(verified(ak, nv_certify(tpm, handle, GEO_NV_INDEX, GEO_NV_SIZE, NONCE)))
    assert attest.extra_data == NONCE
    assert attest.info.index_name == NvPublic(GEO_NV_INDEX, GEO_NV_ATTRIBUTES_LOCKED, GEO_NV_SIZE).name
    assert (attest.info.offset, attest.info.contents) == (0, digest)


def test_a_missing_geo_index_is_told(tpm: Tpm) -> None:
    handle, _ = ak_of(tpm)
    with pytest.raises(TpmError) as caught:
        nv_certify(tpm, handle, GEO_NV_INDEX, GEO_NV_SIZE, NONCE)
    assert caught.value.code == "tpm.handle"


def test_the_binding_key_is_certified_by_name(tpm: Tpm) -> None:
    handle, ak = ak_of(tpm)
    blob = create_binding_key(tpm, pcr_policy("sha256", pcr_read(tpm, "sha256", range(8))))
    with storage_key(tpm) as parent, loaded_binding_key(tpm, parent, blob) as key:
        attest = parse_certify(verified(ak, certify(tpm, handle, key, NONCE)))
    assert attest.info.name == blob.name == parse_public_2b(blob.public).name
    assert attest.extra_data == NONCE
