"""One visit to the TPM: what it costs, what it leaves out, and what is made anew when."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keypeer import collect
from keypeer.errors import AnswerError, ReleaseForged, TpmError
from keypeer.state import AgentState
from keypeer.tpm import Tpm, pcr_extend, pcr_policy, pcr_read, read_nv
from keypeer.wire.canonical import geo_tag_digest, qualifying_data, session_key_preimage
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.geo import GeoTagStatement, encode_statement
from keypeer.wire.messages import Challenge, SessionGrant, SessionKeyLink, SignedGeoTag
from keypeer.wire.profile import BOOT_PCRS, GEO_NV_INDEX
from kms.tpm.attest import parse_quote
from kms.tpm.public import parse_public_2b
from tests.support.grants import HSM_KEY, SESSION_KEY_DER, signed
from tests.support.swtpm import SwTpm

CERTIFICATE = b"the client certificate's DER"
CHALLENGE = Challenge(
    nonce=b64encode(bytes(range(32))),
    purpose="attest",
    expires_at=1_900_000_000,
    bank="sha256",
    quote_pcrs=tuple(range(16)),
    binding_pcrs=BOOT_PCRS,
    geo_nv_index=GEO_NV_INDEX,
)
SIGNATURES = {"quote", "nv_certify", "certify"}
SLOW = {"create", "create_primary", "rsa_decrypt", "load"}


@pytest.fixture
def state(tmp_path: Path, swtpm: SwTpm) -> AgentState:
    made = AgentState.create(tmp_path / "agent", server="https://kms", host="fra-1", ca=b"", tcti=swtpm.tcti)
    made.save_session_key(SESSION_KEY_DER)
    return made


def tag(host: str = "fra-1", country: str = "DE") -> SignedGeoTag:
    statement = GeoTagStatement(tag="t", host=host, ek="0" * 64, country=country, issued_at=1, expires_at=2)
    return SignedGeoTag(statement=b64encode(encode_statement(statement)), signature=b64encode(b"officer's"))


class Counting:
    """An ESAPI context that counts the commands that cost a real TPM time."""

    def __init__(self, esys: Any) -> None:
        self._esys = esys
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        if name in SIGNATURES | SLOW:
            self.calls[name] += 1
        return getattr(self._esys, name)


def answered(tpm: Tpm, state: AgentState, known: collect.Known | None = None) -> collect.Evidence:
    return collect.answer(tpm, state, CHALLENGE, CERTIFICATE, known)


def test_steady_state_is_one_quote_and_one_nv_certify(tpm: Tpm, state: AgentState) -> None:
    collect.write_geo_tag(tpm, state, tag())
    known = answered(tpm, state).known
    counting = Counting(tpm.esys)
    answered(Tpm(counting), state, known)
    assert counting.calls == {"quote": 1, "nv_certify": 1}


def test_the_first_in_a_boot_certifies_the_binding_key_too(tpm: Tpm, state: AgentState) -> None:
    collect.write_geo_tag(tpm, state, tag())
    answered(tpm, state)
    counting = Counting(tpm.esys)
    answered(Tpm(counting), state, None)
    assert counting.calls == {"quote": 1, "nv_certify": 1, "certify": 1, "create_primary": 1, "load": 1}


def test_everything_carries_one_qualifying_data(tpm: Tpm, state: AgentState) -> None:
    request = answered(tpm, state).request
    wanted = qualifying_data(
        nonce=bytes(range(32)),
        host="fra-1",
        client_certificate=CERTIFICATE,
        binding_name=b64decode(request.binding_name),
        purpose="attest",
    )
    assert parse_quote(b64decode(request.quote.attest)).extra_data == wanted
    assert request.binding is not None
    assert parse_public_2b(b64decode(request.binding.public)).name == b64decode(request.binding_name)


def test_a_known_binding_key_isn_t_certified_again_until_the_reboot(swtpm: SwTpm, state: AgentState) -> None:
    with swtpm.open() as tpm:
        first = answered(tpm, state)
        assert answered(tpm, state, first.known).request.binding is None
    swtpm.reboot()
    with swtpm.open() as tpm:
        after = answered(tpm, state, first.known)
    assert after.request.binding is not None
    assert after.request.binding_name == first.request.binding_name  # the same boot state, so the same key
    assert after.known.boot.reset_count == first.known.boot.reset_count + 1


def test_a_moved_boot_pcr_makes_another_binding_key(tpm: Tpm, state: AgentState) -> None:
    first = answered(tpm, state)
    pcr_extend(tpm, "sha256", 4, b"\x01" * 32)
    second = answered(tpm, state, first.known)
    assert second.request.binding_name != first.request.binding_name
    assert second.request.binding is not None
    kept = state.binding()
    assert kept is not None
    assert kept.bound_to(pcr_policy("sha256", pcr_read(tpm, "sha256", BOOT_PCRS)))


def test_without_a_tag_there_is_no_geo_evidence(tpm: Tpm, state: AgentState) -> None:
    assert answered(tpm, state).request.geo is None


def test_a_tag_whose_index_is_gone_isn_t_sent(tpm: Tpm, state: AgentState) -> None:
    collect.write_geo_tag(tpm, state, tag())
    tpm.esys.nv_undefine_space(tpm.esys.tr_from_tpmpublic(GEO_NV_INDEX))
    assert answered(tpm, state).request.geo is None


def test_a_cleared_tpm_starts_over(swtpm: SwTpm, state: AgentState) -> None:
    with swtpm.open() as tpm:
        collect.write_geo_tag(tpm, state, tag())
        first = answered(tpm, state)
        assert collect.ek_digest(tpm) == hashlib.sha256(_ek(tpm)).hexdigest()
    environment = os.environ | {"TPM2TOOLS_TCTI": swtpm.tcti, "TSS2_LOG": "all+NONE"}
    subprocess.run(["tpm2_clear", "-c", "p"], env=environment, check=True, capture_output=True)
    with swtpm.open() as tpm:
        again = answered(tpm, state)
        assert again.request.binding_name != first.request.binding_name
        assert again.request.geo is None
        assert collect.write_geo_tag(tpm, state, tag())
        assert answered(tpm, state, again.known).request.geo is not None


def _ek(tpm: Tpm) -> bytes:
    from keypeer.tpm import ek_public

    return ek_public(tpm)[2:]


def test_a_binding_file_of_nonsense_is_replaced(tpm: Tpm, state: AgentState) -> None:
    answered(tpm, state)
    (state.folder / "binding.priv").write_bytes(b"nonsense")
    assert answered(tpm, state).request.binding is not None


def test_other_tpm_errors_aren_t_taken_for_that(swtpm: SwTpm, state: AgentState) -> None:
    tpm = swtpm.open()
    answered(tpm, state)
    swtpm.stop()
    with pytest.raises(TpmError) as caught:
        answered(tpm, state)
    assert caught.value.code == "tpm.unavailable"
    assert state.binding() is not None
    tpm.close()


# ── sessions ───────────────────────────────────────────────────────────────────────────────────────────────────


def granted(evidence: collect.Evidence, key: bytes = b"\x05" * 32) -> SessionGrant:
    """As the HSM encapsulates a session key."""
    assert evidence.request.binding is not None
    public = parse_public_2b(b64decode(evidence.request.binding.public)).key()
    assert isinstance(public, rsa.RSAPublicKey)
    ciphertext = public.encrypt(key, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
    grant = SessionGrant(
        session="AAAA",
        expires_at=1_900_000_000,
        binding_name=evidence.request.binding_name,
        encapsulated_key=b64encode(ciphertext),
        oaep_hash="sha256",
        wrapped_mac_key="",
        signature="",
    )
    return signed(grant, "fra-1")


def test_a_session_key_opens(tpm: Tpm, state: AgentState) -> None:
    grant = granted(answered(tpm, state))
    with collect.open_session(tpm, state, CHALLENGE, grant) as key:
        assert bytes(key.view()) == b"\x05" * 32


def test_after_a_rotation_the_host_pins_the_key_that_the_pinned_one_named(tpm: Tpm, state: AgentState) -> None:
    grant = granted(answered(tpm, state))
    newest = ec.generate_private_key(ec.SECP256R1())
    spki = newest.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    endorsement = HSM_KEY.sign(session_key_preimage(2, SESSION_KEY_DER, spki), ec.ECDSA(hashes.SHA256()))
    link = SessionKeyLink(version=2, public_key=b64encode(spki), endorsement=b64encode(endorsement))
    by_none = signed(
        msgspec.structs.replace(grant, key_links=(link,)), "fra-1", ec.generate_private_key(ec.SECP256R1())
    )
    with pytest.raises(ReleaseForged):
        collect.open_session(tpm, state, CHALLENGE, by_none)
    assert state.session_key() == SESSION_KEY_DER
    by_newest = signed(msgspec.structs.replace(grant, key_links=(link,)), "fra-1", newest)
    with collect.open_session(tpm, state, CHALLENGE, by_newest) as key:
        assert bytes(key.view()) == b"\x05" * 32
    assert state.session_key() == spki


def test_a_session_key_stays_shut_once_a_boot_pcr_moved(tpm: Tpm, state: AgentState) -> None:
    grant = granted(answered(tpm, state))
    pcr_extend(tpm, "sha256", 7, b"\x01" * 32)
    with pytest.raises(TpmError) as caught:
        collect.open_session(tpm, state, CHALLENGE, grant)
    assert caught.value.code == "tpm.policy"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda grant: msgspec.structs.replace(grant, binding_name=b64encode(bytes(34))),
        lambda grant: msgspec.structs.replace(grant, encapsulated_key="****"),
    ],
    ids=["another binding key", "no base64url"],
)
def test_a_grant_for_others_is_an_answer_error(
    tpm: Tpm, state: AgentState, spoil: Callable[[SessionGrant], SessionGrant]
) -> None:
    grant = granted(answered(tpm, state))
    with pytest.raises(AnswerError):
        collect.open_session(tpm, state, CHALLENGE, spoil(grant))


# ── geo-tags ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_tag_is_written_once_and_kept(tpm: Tpm, state: AgentState) -> None:
    assert collect.write_geo_tag(tpm, state, tag())
    assert not collect.write_geo_tag(tpm, state, tag())
    assert state.geo_tag() == tag()
    assert read_nv(tpm, GEO_NV_INDEX) == geo_tag_digest(b64decode(tag().statement))
    assert collect.write_geo_tag(tpm, state, tag(country="FR"))
    assert state.geo_tag() == tag(country="FR")


def test_a_crash_between_tpm_and_folder_is_mended(tpm: Tpm, state: AgentState) -> None:
    collect.write_geo_tag(tpm, state, tag())
    (state.folder / "geo-tag.json").unlink()
    assert collect.write_geo_tag(tpm, state, tag())
    assert state.geo_tag() == tag()


def test_another_hosts_tag_is_refused(tpm: Tpm, state: AgentState) -> None:
    with pytest.raises(AnswerError) as caught:
        collect.write_geo_tag(tpm, state, tag(host="iad-1"))
    assert caught.value.code == "geo.host"
    assert read_nv(tpm, GEO_NV_INDEX) is None


@pytest.mark.parametrize("statement", ["", "****", b64encode(b"{}"), b64encode(b"\xff")])
def test_a_broken_tag_is_an_answer_error(tpm: Tpm, state: AgentState, statement: str) -> None:
    with pytest.raises(AnswerError) as caught:
        collect.write_geo_tag(tpm, state, SignedGeoTag(statement=statement, signature=""))
    assert caught.value.code == "service.answer"
