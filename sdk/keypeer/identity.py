"""The host's TLS identity: an EC P-256 key that stays in the agent's folder, and the request for its certificate."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from keypeer.errors import StateError
from keypeer.state import AgentState


def signing_request(state: AgentState) -> str:
    """PEM of a PKCS#10 request for the host's TLS key, which is made the first time and kept. Raises StateError."""
    pem = state.tls_key()
    if pem is None:
        made = ec.generate_private_key(ec.SECP256R1())
        pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        state.save_tls_key(pem)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StateError("state.key", f"{state.key} holds no plain EC key", "remove it and enrol again")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, state.settings.host)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()
