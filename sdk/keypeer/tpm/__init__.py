"""The host's TPM 2.0, through tpm2-pytss (extra ``tpm``). One thread at a time: an ESAPI context isn't thread-safe.

Importing this loads no TSS; ``Tpm.open`` does.
"""

from __future__ import annotations

from keypeer.tpm.attestation import (
    AK_HANDLE,
    Boot,
    Quote,
    attestation_key,
    boot_now,
    certify,
    nv_certify,
    pcr_extend,
    pcr_read,
    quote,
)
from keypeer.tpm.binding import BindingBlob, create_binding_key, pcr_policy, rsa_decrypt
from keypeer.tpm.device import DEFAULT_TCTI, Tpm
from keypeer.tpm.endorsement import activate_credential, ek_certificates, ek_public
from keypeer.tpm.nv import read_nv, write_geo_digest

__all__ = [
    "AK_HANDLE",
    "DEFAULT_TCTI",
    "BindingBlob",
    "Boot",
    "Quote",
    "Tpm",
    "activate_credential",
    "attestation_key",
    "boot_now",
    "certify",
    "create_binding_key",
    "ek_certificates",
    "ek_public",
    "nv_certify",
    "pcr_extend",
    "pcr_policy",
    "pcr_read",
    "quote",
    "read_nv",
    "rsa_decrypt",
    "write_geo_digest",
]
