"""A quote recorded on a cloud machine's vTPM, read in place: KEYPEER_VECTORS names the folder."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from kms.evidence.appraise import Untrusted, appraise
from kms.evidence.model import Evidence, Expectations
from kms.tpm import constants as c
from kms.tpm.attest import parse_quote
from kms.tpm.selection import PcrSelection
from tests.support import tpm_bytes as t
from tests.support.evidence_exchange import NOW, TagIssuer, baseline, reason_ids

pytestmark = pytest.mark.vectors


def recorded(name: str) -> bytes:
    return (Path(os.environ["KEYPEER_VECTORS"]) / "quote" / f"azure-vtpm.{name}").read_bytes()


def evidence() -> Evidence:
    facts = json.loads(recorded("json"))
    signature = t.scheme(c.ALG_RSASSA, c.SHA256) + t.tpm2b(bytes.fromhex(facts["signature_rsassa_sha256"]))
    values = facts["pcrs_sha256"]
    return Evidence(
        quote_attest=recorded("attest"),
        quote_signature=signature,
        pcr_values=b"".join(bytes.fromhex(values[str(pcr)]) for pcr in range(24)),
        binding_name=bytes(34),
        geo=None,
        binding=None,
    )


def expectations(**changes: Any) -> Expectations:
    key = load_pem_public_key(recorded("akpub.pem"))
    assert isinstance(key, rsa.RSAPublicKey)
    expected = Expectations(
        host="azure-vtpm",
        ek_digest=bytes(32),
        ak_public=t.rsa_public(key, t.AK_ATTRIBUTES, key_scheme=t.scheme(c.ALG_RSASSA, c.SHA256)),
        qualifying_data=b"challenge",
        bank="sha256",
        quote_pcrs=frozenset(range(24)),
        binding_pcrs=tuple(range(8)),
        baselines=(baseline("azure", {0: (evidence().pcr_values[:32],)}),),
        geo_public_keys=(TagIssuer().public,),
        current_tag=None,
        known_binding=None,
        previous=None,
    )
    return replace(expected, **changes)


def test_recorded_quote_holds() -> None:
    # It comes without a binding key, so that is the one thing left to ask for.
    assert reason_ids(appraise(evidence(), expectations(), NOW)) == ("binding.missing",)


def test_recorded_quote_reads_as_documented() -> None:
    quote = parse_quote(recorded("attest"))
    assert quote.extra_data == b"challenge"
    assert quote.info.selections == (PcrSelection(c.ALG_SHA256, tuple(range(24))),)
    assert (quote.clock_info.reset_count, quote.clock_info.restart_count, quote.clock_info.safe) == (3, 0, True)


FORGED = t.scheme(c.ALG_RSASSA, c.SHA256) + t.tpm2b(bytes(256))
WRONG = {
    "another challenge": ({}, {"qualifying_data": b"challenge2"}, "quote.qualifying_data"),
    "another bank": ({}, {"bank": "sha384"}, "quote.bank"),
    "fewer PCRs": ({}, {"quote_pcrs": frozenset(range(8))}, "quote.selection"),
    "other values": ({"pcr_values": bytes(24 * 32)}, {}, "quote.digest"),
    "another signature": ({"quote_signature": FORGED}, {}, "quote.signature"),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "expected", "reason"), WRONG.values(), ids=WRONG)
def test_recorded_quote_is_refused_when_anything_differs(
    sent: dict[str, Any], expected: dict[str, Any], reason: str
) -> None:
    verdict = appraise(replace(evidence(), **sent), expectations(**expected), NOW)
    assert isinstance(verdict, Untrusted)
    assert reason in reason_ids(verdict)
