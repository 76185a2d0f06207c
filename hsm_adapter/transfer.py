"""Copies of one token (keypeer token clone) and what is made in one of them later.

Every copy has the RSA pair ``keypeer/transfer``, made before the first copy was. A new version of a long-lived key is
wrapped to it as it is made, in the form of a backup (backup.py) and signed like one; the other tokens unwrap it inside.
Nobody outside a token can open such a document, and a token takes none that no session key of its own has signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass

from hsm_adapter import limits
from hsm_adapter.backup import KeyBackup, Recovery, fingerprint, unbase64
from hsm_adapter.backup_folder import verify_backup
from hsm_adapter.errors import BadRequest, RecordTampered, Unusable
from hsm_adapter.keys import Keys, handle_of, label_of, public_spki
from hsm_adapter.longlived import NEW_LABEL, destroy_labelled, name_key
from hsm_adapter.translate import translated

TRANSFER_LABEL: Final = "keypeer/transfer"


@dataclass(frozen=True, slots=True)
class Transfer:
    """The pair: to whom documents are wrapped, and the private half's handle."""

    recipient: Recovery
    private: int


def create_transfer(session: pkcs11.Session) -> bool:
    """Makes the pair by a session that may write, unless it is there → whether it was made."""
    if find_transfer(session) is not None:
        return False
    destroy_labelled(session, NEW_LABEL)
    destroy_labelled(session, TRANSFER_LABEL)  # half a pair, of a maker that was killed
    with translated("C_GenerateKeyPair"):
        made = session.generate_keypair(
            KeyType.RSA,
            limits.RECOVERY_BITS[0],
            label=NEW_LABEL,
            store=True,
            public_template={Attribute.PRIVATE: False, Attribute.WRAP: True, Attribute.VERIFY: False},
            private_template={
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.UNWRAP: True,
                Attribute.DECRYPT: False,
                Attribute.SIGN: False,
                Attribute.DERIVE: False,
            },
        )
    name_key(made, TRANSFER_LABEL)
    return True


def find_transfer(session: pkcs11.Session) -> Transfer | None:
    """The pair, whole; None on a token that was never copied."""
    halves = []
    with translated("C_FindObjects"):
        for kind in (ObjectClass.PUBLIC_KEY, ObjectClass.PRIVATE_KEY):
            search = {Attribute.CLASS: kind, Attribute.LABEL: TRANSFER_LABEL, Attribute.TOKEN: True}
            found = list(session.get_objects(search))
            if len(found) > 1:
                raise Unusable("hsm.key_ambiguous", f"the token has {len(found)} objects labelled {TRANSFER_LABEL}")
            halves += found
        if len(halves) < 2:
            return None
        public, private = halves
        return Transfer(Recovery(handle_of(public), fingerprint(public_spki(public))), handle_of(private))


def read_document(data: bytes, name: str, version: int, transfer: Transfer, keys: Keys) -> KeyBackup:
    """The document of exactly that version, for this token's copies, by one of its session keys.

    Raises BadRequest for another one's, RecordTampered for one that nobody here has signed, and Unusable
    ``hsm.not_transferable`` for a key that the token that made it couldn't wrap (SoftHSM 2.6: Ed25519).
    """
    try:
        document = msgspec.json.decode(data, type=KeyBackup)
        signer = unbase64(document.signer)
        document.signed_bytes()
        unbase64(document.signature)
    except ValueError as error:
        raise BadRequest(f"no transfer document: {error}") from None
    if (document.key, document.version, document.recovery) != (name, version, transfer.recipient.fingerprint):
        raise BadRequest(
            f"the document has {label_of(document.key, document.version)} for the tokens of "
            f"{document.recovery[:16]}…, not {label_of(name, version)} for {transfer.recipient.fingerprint[:16]}…"
        )
    if signer not in keys.signing_public["session"].values():
        raise RecordTampered(f"the transfer document of {label_of(name, version)}")
    verify_backup(document)
    if not document.wrapped:
        raise Unusable("hsm.not_transferable", f"the HSM that made {label_of(name, version)} couldn't wrap it")
    return document
