"""Session grants signed as the HSM signs them, with a software key."""

from __future__ import annotations

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keypeer.wire.canonical import grant_preimage
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.messages import SessionGrant

HSM_KEY = ec.generate_private_key(ec.SECP256R1())
SESSION_KEY_DER = HSM_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def signed(grant: SessionGrant, host: str, key: ec.EllipticCurvePrivateKey = HSM_KEY) -> SessionGrant:
    """``grant`` with its signature for ``host``."""
    message = grant_preimage(
        session=b64decode(grant.session),
        host=host,
        binding_name=b64decode(grant.binding_name),
        oaep_hash=grant.oaep_hash,
        encapsulated_key=b64decode(grant.encapsulated_key),
        wrapped_mac_key=b64decode(grant.wrapped_mac_key),
    )
    return msgspec.structs.replace(grant, signature=b64encode(key.sign(message, ec.ECDSA(hashes.SHA256()))))
