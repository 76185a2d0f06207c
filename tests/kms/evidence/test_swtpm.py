"""Evidence of a real TPM implementation, made with tpm2-tools alone, appraised."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from keypeer.wire.canonical import geo_tag_digest, qualifying_data
from keypeer.wire.profile import BOOT_PCRS
from kms.evidence.appraise import Appraisal, Untrusted, appraise
from kms.evidence.ek import ek_digest
from kms.evidence.model import Evidence, Expectations
from kms.tpm.public import parse_public_2b
from tests.support.evidence_exchange import NOW, TagIssuer, baseline, reason_ids
from tests.support.simulated_host import SimulatedHost
from tests.support.tpm2_tools import ToolsTpm, available

pytestmark = pytest.mark.skipif(not available(), reason="swtpm and tpm2-tools are not installed")

BOOT = "sha256:" + ",".join(map(str, BOOT_PCRS))
AKS = {
    "ecc-sha256": ("ecc", "ecdsa", "sha256"),
    "rsa-rsassa": ("rsa", "rsassa", "sha256"),
    "rsa-rsapss": ("rsa", "rsapss", "sha256"),
}


@pytest.fixture
def tpm() -> Iterator[ToolsTpm]:
    # pytest's own folders are too long for Unix sockets.
    with tempfile.TemporaryDirectory(prefix="kp") as folder, ToolsTpm(Path(folder)) as running:
        yield running


@dataclass
class Host:
    """A provisioned swtpm and what the service knows of it."""

    tpm: ToolsTpm
    issuer: TagIssuer
    ek_digest: bytes
    ak_public: bytes
    binding_name: bytes
    tag: tuple[bytes, bytes]
    nonce: bytes = bytes(range(32))

    @property
    def qualifying(self) -> bytes:
        return qualifying_data(
            nonce=self.nonce,
            host="fra-1",
            client_certificate=b"certificate",
            binding_name=self.binding_name,
            purpose="attest",
        )

    def evidence(self, pcrs: str = BOOT) -> Evidence:
        return self.tpm.collect(self.qualifying, pcrs, self.binding_name, self.tag)

    def expectations(self, **changes: Any) -> Expectations:
        expectations = Expectations(
            host="fra-1",
            ek_digest=self.ek_digest,
            ak_public=self.ak_public,
            qualifying_data=self.qualifying,
            bank="sha256",
            quote_pcrs=frozenset(BOOT_PCRS),
            binding_pcrs=BOOT_PCRS,
            baselines=(baseline("blank", {pcr: (bytes(32),) for pcr in BOOT_PCRS}),),
            geo_public_keys=(self.issuer.public,),
            current_tag="tag-1",
            known_binding=None,
            previous=None,
        )
        return replace(expectations, **changes)

    def appraise(self, **changes: Any) -> Appraisal | Untrusted:
        return appraise(self.evidence(), self.expectations(**changes), NOW)


def provision(tpm: ToolsTpm, kind: str = "ecc-sha256", *, lock: bool = True) -> Host:
    digest = ek_digest(tpm.create_ek())
    ak = parse_public_2b(tpm.create_ak(*AKS[kind]))
    binding = parse_public_2b(tpm.create_binding_key(BOOT))
    issuer = TagIssuer()
    tag = issuer.issue(SimulatedHost("fra-1"), ek=digest.hex())
    tpm.write_geo_index(geo_tag_digest(tag[0]), lock=lock)
    return Host(tpm, issuer, digest, ak.encoded, binding.name, tag)


@pytest.mark.parametrize("kind", AKS)
def test_honest_tpm_passes(tpm: ToolsTpm, kind: str) -> None:
    verdict = provision(tpm, kind).appraise()
    assert isinstance(verdict, Appraisal), verdict
    assert verdict.facts.baselines == ("blank",)
    assert verdict.facts.geo is not None
    assert verdict.facts.geo.country == "DE"


def test_pcr_extend_is_named_and_breaks_the_binding(tpm: ToolsTpm) -> None:
    host = provision(tpm)
    tpm.run("tpm2_pcrextend", "4:sha256=" + "44" * 32)
    assert reason_ids(host.appraise()) == ("pcr.4", "binding.policy")


def test_reboot_is_seen_and_needs_a_new_certification(tpm: ToolsTpm) -> None:
    host = provision(tpm)
    before = host.appraise()
    assert isinstance(before, Appraisal)
    tpm.reboot()
    tpm.create_ek()
    assert parse_public_2b(tpm.read("ek.pub")).encoded
    _reload_ak(tpm)
    tpm.load_binding_key()
    known = {"known_binding": before.binding, "previous": before.facts.counters}

    evidence, expectations = host.evidence(), host.expectations(**known)
    after = appraise(evidence, expectations, NOW)
    assert isinstance(after, Appraisal), after
    assert after.rebooted
    assert after.facts.counters.reset_count == before.facts.counters.reset_count + 1
    assert reason_ids(appraise(replace(evidence, binding=None), expectations, NOW)) == ("binding.missing",)


def _reload_ak(tpm: ToolsTpm) -> None:
    tpm.run("tpm2_startauthsession", "--policy-session", "-S", "session.ctx")
    tpm.run("tpm2_policysecret", "-S", "session.ctx", "-c", "e")
    tpm.run("tpm2_load", "-C", "ek.ctx", "-u", "ak.pub", "-r", "ak.priv", "-c", "ak.ctx", "-P", "session:session.ctx")
    tpm.run("tpm2_flushcontext", "session.ctx")


def test_unlocked_geo_index_is_named_as_such(tpm: ToolsTpm) -> None:
    verdict = provision(tpm, lock=False).appraise()
    assert reason_ids(verdict) == ("geo.nv_name",)
    assert isinstance(verdict, Untrusted)
    assert "not write-locked" in verdict.reasons[0].found


def test_locked_geo_index_cannot_be_rewritten(tpm: ToolsTpm) -> None:
    provision(tpm)
    tpm.write("digest", bytes(32))
    assert tpm.run("tpm2_nvwrite", "-C", "o", "-i", "digest", "0x01806b70", check=False).returncode != 0


def test_other_selection_than_asked(tpm: ToolsTpm) -> None:
    host = provision(tpm)
    evidence = host.evidence("sha256:0,1,2,3,16,5,6,7")
    assert reason_ids(appraise(evidence, host.expectations(), NOW)) == ("quote.selection",)


def test_sha1_bank(tpm: ToolsTpm) -> None:
    host = provision(tpm)
    evidence = host.evidence("sha1:0,1,2,3,4,5,6,7")
    ids = reason_ids(appraise(evidence, host.expectations(), NOW))
    assert ids == ("quote.bank",)


def test_binding_key_that_a_password_opens(tpm: ToolsTpm) -> None:
    host = provision(tpm)
    weak = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|decrypt"
    host.binding_name = parse_public_2b(tpm.create_binding_key(BOOT, weak)).name
    assert reason_ids(host.appraise()) == ("binding.attributes",)
