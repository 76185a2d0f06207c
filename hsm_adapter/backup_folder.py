"""A folder of backups: what a restore reads, and why it believes what it read.

A backup is signed by the session key pair's version of its time, whose own backup is signed by the version before, back
to the first, which signs itself. So one fingerprint kept elsewhere, the first one's, vouches for the whole folder.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hsm_adapter import limits
from hsm_adapter.backup import KeyBackup, fingerprint, unbase64
from hsm_adapter.errors import Unusable
from hsm_adapter.keys import SECRET_NAMES, SIGNING_LABELS, label_of


def read_backups(folder: Path, recovery: str, trusted: Collection[str] = ()) -> list[KeyBackup]:
    """Every backup in ``folder`` (``*.json``), by key and version. ``recovery``: the fingerprint of the recovery key
    that they must be wrapped to; ``trusted``: fingerprints of session keys, none: whichever signed itself.

    Raises Unusable: hsm.backups (unreadable, incomplete, to another recovery key), hsm.backup_forged.
    """
    try:
        found = [_read(path) for path in sorted(folder.glob("*.json"))]
    except OSError as error:
        raise Unusable("hsm.backups", f"{error.filename}: {error.strerror}") from error
    backups = sorted(found, key=lambda backup: (backup.key, backup.version))
    seen = [(backup.key, backup.version) for backup in backups]
    for before, after in itertools.pairwise(seen):
        if before == after:
            raise Unusable("hsm.backups", f"{folder} has two backups of {label_of(*after)}")
    missing = [name for name in (*SECRET_NAMES, *SIGNING_LABELS) if name not in {name for name, _ in seen}]
    if missing:
        raise Unusable("hsm.backups", f"{folder} has no backup of {', '.join(missing)}")
    for backup in backups:
        if backup.recovery != recovery:
            label = label_of(backup.key, backup.version)
            raise Unusable("hsm.backups", f"{label} is wrapped to recovery key {backup.recovery}, not to {recovery}")
    _check_signatures(backups, trusted)
    return backups


def signers_of(backups: Sequence[KeyBackup]) -> list[str]:
    """The fingerprints of the session keys that signed themselves: what people compare with what they kept."""
    return sorted({fingerprint(unbase64(b.signer)) for b in backups if _signs_itself(b)})


def _read(path: Path) -> KeyBackup:
    with path.open("rb") as file:
        raw = file.read(limits.BACKUP_BYTES_MAX + 1)
    try:
        if len(raw) > limits.BACKUP_BYTES_MAX:
            raise ValueError(f"more than {limits.BACKUP_BYTES_MAX} bytes")
        backup = msgspec.json.decode(raw, type=KeyBackup)
        backup.signed_bytes()  # its base64 is that, and its fields fit
        unbase64(backup.signature)
    except ValueError as error:
        raise Unusable("hsm.backups", f"{path} is no backup: {error}") from None
    return backup


def _check_signatures(backups: Sequence[KeyBackup], trusted: Collection[str]) -> None:
    """Raises unless every backup is signed by a trusted session key, or by one whose own backup is."""
    known = set(trusted) or set(signers_of(backups))
    if not trusted and len(known) != 1:
        raise Unusable(
            "hsm.backup_forged",
            f"{len(known)} session keys signed themselves; say by its fingerprint which one is to be trusted",
        )
    left = list(backups)
    while True:
        believed = [backup for backup in left if fingerprint(unbase64(backup.signer)) in known]
        for backup in believed:
            verify_backup(backup)
        known |= {fingerprint(unbase64(backup.public_key)) for backup in believed if backup.key == "session"}
        left = [backup for backup in left if backup not in believed]
        if not left:
            return
        if not believed:
            labels = ", ".join(label_of(backup.key, backup.version) for backup in left)
            raise Unusable("hsm.backup_forged", f"no trusted session key signed the backup of {labels}")


def verify_backup(backup: KeyBackup) -> None:
    """Raises Unusable ``hsm.backup_forged`` unless its signer has signed it."""
    label = label_of(backup.key, backup.version)
    try:
        signer = load_der_public_key(unbase64(backup.signer))
        if not isinstance(signer, ec.EllipticCurvePublicKey):
            raise Unusable("hsm.backup_forged", f"the backup of {label} isn't signed by a session key")
        signer.verify(unbase64(backup.signature), backup.signed_bytes(), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        raise Unusable("hsm.backup_forged", f"the signature of the backup of {label} does not verify") from None


def _signs_itself(backup: KeyBackup) -> bool:
    return backup.key == "session" and backup.signer == backup.public_key
