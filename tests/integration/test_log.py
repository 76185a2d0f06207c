"""The audit log over HTTP: a signed head, tiles and proofs that agree with it."""

from __future__ import annotations

import hashlib

import pytest

from keypeer.wire import messages as wire
from keypeer.wire.tlog.checkpoint import Checkpoint, open_checkpoint
from keypeer.wire.tlog.merkle import fold, leaf_hash, verify_consistency, verify_inclusion
from keypeer.wire.tlog.note import VerifierKey
from keypeer.wire.tlog.tiles import decode_bundle, index_text
from tests.support.service import Service, create_vm


def keys(service: Service) -> list[VerifierKey]:
    found: wire.LogKeys = service.caller("auditor").get("/v1/log/key").of(wire.LogKeys)
    return [VerifierKey.parse(key) for key in found.keys]


def checkpoint(service: Service) -> Checkpoint:
    reply = service.caller("auditor").get("/v1/log/checkpoint")
    assert (reply.status, reply.type) == (200, "text/plain")
    return open_checkpoint(reply.body, keys(service)).checkpoint


def get(service: Service, path: str) -> bytes:
    reply = service.caller("auditor").get(path)
    assert (reply.status, reply.type) == (200, "application/octet-stream"), reply
    body: bytes = reply.body
    return body


def partial(size: int) -> str:
    """The last tile of level 0 in a log of less than 256,000 entries."""
    return f"{index_text(size // 256)}{f'.p/{size % 256}' if size % 256 else ''}"


def test_the_signed_head_is_the_root_over_the_entries_that_are_served(service: Service) -> None:
    head = checkpoint(service)
    assert head.origin.startswith("keypeer/")
    assert head.size > 0
    bundles, tiles = [], []
    for index in range(-(-head.size // 256)):
        place = index_text(index) if (index + 1) * 256 <= head.size else partial(head.size)
        bundles += decode_bundle(get(service, f"/v1/log/tile/entries/{place}"))
        tiles.append(get(service, f"/v1/log/tile/0/{place}"))
    leaves = [leaf_hash(entry) for entry in bundles]
    assert b"".join(leaves) == b"".join(tiles)
    assert fold([leaves]) == head.root
    shown = service.audit()[: head.size]
    assert [entry["leaf"] for entry in shown] == [leaf.hex() for leaf in leaves]


def test_proofs_lead_to_the_signed_root(service: Service) -> None:
    before = checkpoint(service)
    create_vm(service, "proof-1")
    auditor = service.caller("auditor")
    new = before.size + 1
    proof: wire.ConsistencyProof = auditor.get(f"/v1/log/consistency?from={before.size}&to={new}").of(
        wire.ConsistencyProof
    )
    steps = [bytes.fromhex(step) for step in proof.proof]
    assert bytes.fromhex(proof.from_root) == before.root
    assert verify_consistency(before.size, before.root, new, bytes.fromhex(proof.to_root), steps)
    for sequence in (0, before.size // 2, before.size - 1):
        found: wire.InclusionProof = auditor.get(f"/v1/log/inclusion?sequence={sequence}&size={before.size}").of(
            wire.InclusionProof
        )
        steps = [bytes.fromhex(step) for step in found.proof]
        leaf = bytes.fromhex(found.leaf)
        assert verify_inclusion(leaf, sequence, before.size, steps, before.root)
        entry = auditor.get(f"/v1/audit?after={sequence}&limit=1").body["items"][0]
        assert entry["leaf"] == found.leaf


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("tile/0/999", 404, "log.no_tile"),
        ("tile/1/000.p/255", 404, "log.no_tile"),
        ("tile/64/000", 404, "log.no_tile"),
        ("tile/00/000", 404, "log.no_tile"),
        ("tile/x/000", 404, "log.no_tile"),
        ("tile/entries/x999/999", 404, "log.no_tile"),
        ("tile/0/1", 422, "request.invalid"),
        ("tile/0/0000", 422, "request.invalid"),
        ("tile/0/x000/001", 422, "request.invalid"),
        ("tile/0/000.p/256", 422, "request.invalid"),
        ("tile/0/000.p/0", 422, "request.invalid"),
        ("tile/0/000.p/01", 422, "request.invalid"),
        ("tile/0/x999/x999/x999/x999/999", 404, "log.no_tile"),
        ("tile/0/" + "x999/" * 9 + "999", 422, "request.invalid"),
        ("inclusion?sequence=999999999", 400, "log.range"),
        ("inclusion?sequence=-1", 400, "request.invalid"),
        ("inclusion?sequence=0&size=999999999", 400, "log.range"),
        ("consistency?from=2&to=1", 400, "log.range"),
        ("consistency?from=0&to=999999999", 400, "log.range"),
        ("checkpoint?cosigned=1", 404, "log.not_cosigned"),
    ],
)
def test_what_is_not_there_is_told_in_words(service: Service, path: str, status: int, code: str) -> None:
    reply = service.caller("auditor").get(f"/v1/log/{path}")
    assert (reply.status, reply.code) == (status, code)


def test_full_tiles_may_be_kept_and_partial_ones_not(service: Service) -> None:
    for number in range(3):  # at most a hundred entries and more a call
        names = [{"vm": f"tile-{number}-{each}", "policy": "eu"} for each in range(10)]
        assert service.caller("operator").post("/v1/vm-batches", {"vms": names}).status == 201
    auditor = service.caller("auditor")
    while auditor.get("/v1/audit?limit=1").body["size"] < 257:
        assert auditor.get("/v1/vms/nobody").status == 404
        assert service.caller("operator").get("/v1/audit").status == 403  # leaves an entry
    full = service.caller("auditor").head("/v1/log/tile/0/000")
    assert "immutable" in full["Cache-Control"]
    assert service.caller("auditor").head("/v1/log/tile/0/000.p/5")["Cache-Control"] == "no-store"
    assert service.caller("auditor").head("/v1/log/checkpoint")["Cache-Control"] == "no-store"
    one = get(service, "/v1/log/tile/1/000.p/1")
    hashes = get(service, "/v1/log/tile/0/000")
    assert fold([[hashes[at : at + 32] for at in range(0, 8192, 32)]]) == one


def test_the_log_is_for_auditors(service: Service) -> None:
    for path in ("checkpoint", "key", "tile/0/000", "tile/entries/000", "inclusion", "consistency"):
        assert service.caller("operator").get(f"/v1/log/{path}").code == "auth.role"
        assert service.caller("anyone").get(f"/v1/log/{path}").code == "auth.certificate_required"


def test_the_origin_is_made_of_the_ca_and_stays(service: Service) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    ca = x509.load_pem_x509_certificate(service.ca.read_bytes()).public_key()
    spki = ca.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert checkpoint(service).origin == f"keypeer/{hashlib.sha256(spki).hexdigest()[:16]}"
