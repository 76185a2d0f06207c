"""Any bytes: parsers raise EvidenceError or give a value; nothing mutated is ever trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import EvidenceError, Refused
from kms.evidence.appraise import Appraisal, Untrusted
from kms.evidence.ek import VendorCas, cut_certificate, ek_trust
from kms.evidence.model import BindingEvidence, Evidence, GeoEvidence
from kms.tpm import constants as c
from kms.tpm.attest import parse_certify, parse_nv_certify, parse_quote, read_header
from kms.tpm.checks import load_attestation_key
from kms.tpm.public import parse_public, parse_public_2b
from kms.tpm.reader import Reader
from kms.tpm.selection import PcrSelection, encode_selection, pcr_policy_digest, read_selections
from kms.tpm.signature import SignatureScheme, parse_signature
from tests.support import tpm_bytes as t
from tests.support.evidence_exchange import NOW, Exchange
from tests.support.simulated_host import SimulatedHost
from tests.support.vendor_ca import ek_certificate, make_ca

X = Exchange(SimulatedHost("fra-1"))
HONEST = X.evidence()
EXPECTATIONS = X.expectations()
assert HONEST.geo is not None
assert HONEST.binding is not None

PARSERS: dict[Callable[[bytes], object], bytes] = {
    read_header: HONEST.quote_attest,
    parse_quote: HONEST.quote_attest,
    parse_nv_certify: HONEST.geo.attest,
    parse_certify: HONEST.binding.attest,
    parse_signature: HONEST.quote_signature,
    parse_public: X.host.ak_public,
    parse_public_2b: HONEST.binding.public,
}
parsers = pytest.mark.parametrize(("parse", "good"), PARSERS.items(), ids=lambda each: getattr(each, "__name__", ""))


def mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """``data`` with a few bytes replaced, cut out, cut off or added; sometimes it comes out unchanged."""

    def apply(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
        for at, size, new in edits:
            data = data[:at] + new + data[at + size :]
        return data

    edit = st.tuples(st.integers(0, len(data)), st.integers(0, 4), st.binary(max_size=4))
    return st.lists(edit, min_size=1, max_size=3).map(lambda edits: apply(data, edits))


@parsers
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_parsers_raise_only_evidence_errors(parse: Callable[[bytes], object], good: bytes, data: st.DataObject) -> None:
    candidate = data.draw(st.one_of(st.binary(max_size=300), mutations(good)))
    outcome: object
    try:
        outcome = parse(candidate)
    except EvidenceError as error:
        outcome = error
    assert outcome is not None
    assert not isinstance(outcome, EvidenceError) or outcome.code == "evidence.malformed"


@parsers
def test_good_structures_parse(parse: Callable[[bytes], object], good: bytes) -> None:
    assert parse(good) == parse(good)


@parsers
@given(extra=st.binary(min_size=1, max_size=16))
def test_trailing_bytes_are_refused(parse: Callable[[bytes], object], good: bytes, extra: bytes) -> None:
    if parse is read_header:
        return
    with pytest.raises(EvidenceError):
        parse(good + extra)


@parsers
def test_every_truncation_is_refused(parse: Callable[[bytes], object], good: bytes) -> None:
    for size in range(6 if parse is read_header else len(good)):
        with pytest.raises(EvidenceError):
            parse(good[:size])


@given(key=mutations(X.host.ak_public))
@settings(max_examples=300, deadline=None)
def test_attestation_keys_load_or_are_refused(key: bytes) -> None:
    try:
        loaded = load_attestation_key(key)
    except (EvidenceError, Refused):
        return
    assert loaded.scheme.alg == c.ALG_ECDSA


@given(r=st.integers(0, 2**528 - 1), s=st.integers(0, 2**528 - 1))
@settings(max_examples=200, deadline=None)
def test_no_invented_ecdsa_signature_verifies(r: int, s: int) -> None:
    blob = t.ECDSA_SHA256 + t.tpm2b(r.to_bytes(66, "big")) + t.tpm2b(s.to_bytes(66, "big"))
    key = X.host.ak.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    flaw = SignatureScheme(c.ALG_ECDSA, c.SHA256).flaw(key, b"message", parse_signature(blob))
    assert flaw == "the signature doesn't verify"


@given(pcrs=st.sets(st.integers(0, 23)))
def test_selection_round_trips(pcrs: set[int]) -> None:
    encoded = encode_selection(c.SHA256, pcrs)
    assert encoded == t.selections(t.selection(c.ALG_SHA256, tuple(pcrs)))
    reader = Reader(encoded, "TPML_PCR_SELECTION")
    assert read_selections(reader) == (PcrSelection(c.ALG_SHA256, tuple(sorted(pcrs))),)
    reader.finish()


@given(values=st.dictionaries(st.integers(0, 23), st.binary(min_size=32, max_size=32), min_size=1), data=st.data())
def test_policy_digest_depends_on_every_value(values: dict[int, bytes], data: st.DataObject) -> None:
    digest = pcr_policy_digest(c.SHA256, c.SHA256, values)
    pcr = data.draw(st.sampled_from(sorted(values)))
    changed = values | {pcr: bytes([values[pcr][0] ^ 1]) + values[pcr][1:]}
    assert pcr_policy_digest(c.SHA256, c.SHA256, changed) != digest
    assert pcr_policy_digest(c.SHA256, c.SHA256, dict(reversed(values.items()))) == digest


def _bytes_fields(value: object) -> list[str]:
    return [each.name for each in fields(value) if isinstance(getattr(value, each.name), bytes)]  # type: ignore[arg-type]  # a dataclass


PLACES = [
    *((None, name) for name in _bytes_fields(HONEST)),
    *(("geo", name) for name in _bytes_fields(HONEST.geo)),
    *(("binding", name) for name in _bytes_fields(HONEST.binding)),
]


def _mutated(part: str | None, field: str, value: bytes) -> Evidence:
    if part is None:
        return replace(HONEST, **{field: value})  # type: ignore[arg-type]  # a bytes field, by name
    inner: GeoEvidence | BindingEvidence = getattr(HONEST, part)
    return replace(HONEST, **{part: replace(inner, **{field: value})})  # type: ignore[arg-type]  # the same


@pytest.mark.parametrize(("part", "field"), PLACES, ids=[f"{part or 'quote'}.{field}" for part, field in PLACES])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_nothing_mutated_is_trusted(part: str | None, field: str, data: st.DataObject) -> None:
    original: bytes = getattr(HONEST if part is None else getattr(HONEST, part), field)
    changed = data.draw(mutations(original).filter(lambda value: value != original))
    try:
        verdict = X.appraise(_mutated(part, field, changed))
    except EvidenceError:
        return
    assert isinstance(verdict, Untrusted)
    assert verdict.reasons


def test_unmutated_is_trusted() -> None:
    assert isinstance(X.appraise(HONEST), Appraisal)


CERTIFICATE = bytes.fromhex("3081") + b"\x80" + bytes(128)


@given(blob=st.one_of(st.binary(max_size=200), mutations(CERTIFICATE)))
@settings(max_examples=300)
def test_certificates_are_cut_or_refused(blob: bytes) -> None:
    try:
        cut = cut_certificate(blob)
    except ValueError:
        return
    assert cut in blob


ROOT = make_ca("Vendor root")
INTERMEDIATE = make_ca("Vendor", ROOT)
VENDORS = VendorCas((ROOT.certificate,))
CHAIN = (ek_certificate(INTERMEDIATE, X.host.ek), INTERMEDIATE.der)


@pytest.mark.parametrize("place", [0, 1], ids=["leaf", "intermediate"])
@given(data=st.data())
@settings(max_examples=700, deadline=None)
def test_no_mutated_ek_chain_is_trusted(place: int, data: st.DataObject) -> None:
    blob = data.draw(mutations(CHAIN[place]))
    chain = (*CHAIN[:place], blob, *CHAIN[place + 1 :])
    trusted = True
    try:
        ek_trust(X.host.ek_public, chain, VENDORS, expected=False, now=NOW)
    except Refused:
        trusted = False
    # Only the fill after a certificate may be changed freely.
    assert not trusted or cut_certificate(blob) == CHAIN[place]
