"""A list recorded on a real machine, read in place: KEYPEER_VECTORS names the folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kms.domain.attestation import ImaPosition
from kms.evidence.ima.appraise import advance
from kms.evidence.ima.entry import parse_ascii
from kms.evidence.ima.replay import check_template_hashes
from kms.evidence.model import Findings

pytestmark = pytest.mark.vectors
SHA256_PCR, SHA1_PCR = "c4a06563", "82231c67"  # as its README gives them


def test_every_hash_is_right_and_the_list_leads_to_its_pcr() -> None:
    entries = parse_ascii((Path(os.environ["KEYPEER_VECTORS"]) / "ima" / "ascii_runtime_measurements").read_bytes())
    assert len(entries) == 826
    check_template_hashes(entries)
    sha1, sha256 = bytes(20), bytes(32)
    for entry in entries:
        sha1 = hashlib.sha1(sha1 + entry.template_hash).digest()  # noqa: S324 - the bank that was recorded
        sha256 = hashlib.sha256(sha256 + hashlib.sha256(entry.hashed).digest()).digest()
    assert sha1.hex().startswith(SHA1_PCR)
    assert sha256.hex().startswith(SHA256_PCR)
    findings = Findings("recorded")
    position, proven = advance(findings, ImaPosition(), entries, "sha256", {10: sha256})
    assert (position.entries, len(proven), findings.reasons) == (826, 826, [])
