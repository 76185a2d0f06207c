"""Every bound of the SDK: name, unit, source."""

from __future__ import annotations

# ── HTTP ───────────────────────────────────────────────────────────────────────────────────────────────────────
CALL_S = 30.0  # seconds for one attempt of one call; the service's own deadlines are 5 to 10
CONNECT_S = 5.0  # seconds to reach the service
KEEPALIVE_S = 240.0  # seconds that an idle connection is kept; the service closes its own after 300
CONNECTIONS_MAX = 8  # count; one agent needs two, a tool that works in parallel a few more
ANSWER_BYTES_MAX = 16 * 1024 * 1024  # bytes; a batch of 10,000 releases has some 5 MB
ATTEMPTS_MAX = 4  # count, for calls that may be repeated
RETRY_FIRST_S = 0.2  # seconds before the second attempt; doubles
RETRY_AFTER_MAX_S = 10.0  # seconds; a longer Retry-After is the caller's to wait for

# ── TPM ────────────────────────────────────────────────────────────────────────────────────────────────────────
TPM_CALL_S = 120.0  # seconds for one visit to the TPM; RSA-2048 key generation takes slow chips up to a minute
TPM_LOCK_S = 60.0  # seconds to wait for another process of this agent to leave the TPM
TPM_LOCK_POLL_S = 0.02  # seconds between looks at the lock of another process of this agent
QUOTE_ATTEMPTS_MAX = 5  # count; a PCR may move between TPM2_PCR_Read and TPM2_Quote
PCRS_A_READ_MAX = 8  # count; TPM 2.0 Part 2 §10.9.7, TPML_DIGEST
NV_CHUNK_BYTES = 512  # bytes; TPM_PT_NV_BUFFER_MAX is 512 or more on PC Client TPMs
NV_INDEX_BYTES_MAX = 8192  # bytes; EK certificates have 1 to 2 KB
EK_CERTIFICATES_MAX = 4  # count; what one enrolment carries (messages.EnrolRequest)
HANDLES_A_LIST_MAX = 254  # count; TPM 2.0 Part 2 §10.9.5, MAX_CAP_HANDLES of a 1 KB buffer

# ── keys in memory ─────────────────────────────────────────────────────────────────────────────────────────────
SECRET_BYTES_MAX = 512  # bytes; the largest plaintext of an RSA-4096 key
DERIVED_BYTES_MIN = 16  # bytes; AES-128
DERIVED_BYTES_MAX = 64  # bytes; AES-256-XTS
SESSION_KEY_BYTES = 32  # bytes; AES-256
OPENED_A_TURN = 256  # keys of a batch opened before other tasks get their turn; some 10 ms
WRAPPED_KEY_BYTES_MAX = 72  # bytes; RFC 5649 adds 8 to the largest VM key

# ── the agent's folder ─────────────────────────────────────────────────────────────────────────────────────────
STATE_FILE_BYTES_MAX = 64 * 1024  # bytes; the largest is a chain of certificates
