"""Every bound of the SDK: name, unit, source."""

from __future__ import annotations

# ── HTTP ───────────────────────────────────────────────────────────────────────────────────────────────────────
CALL_S = 30.0  # seconds for one attempt of one call; the service's own deadlines are 5 to 10
CONNECT_S = 5.0  # seconds to reach the service
KEEPALIVE_S = 240.0  # seconds that an idle connection is kept; the service closes its own after 300
CONNECTIONS_MAX = 8  # count; one agent needs two, a tool that works in parallel a few more
ANSWER_BYTES_MAX = 17 * 1024 * 1024  # bytes; 256 entries of 64 KB; a batch of 10,000 releases has some 5 MB
ATTEMPTS_MAX = 4  # count, for calls that may be repeated
RETRY_FIRST_S = 0.2  # seconds before the second attempt; doubles
RETRY_AFTER_MAX_S = 10.0  # seconds; a longer Retry-After is the caller's to wait for

# ── streams ────────────────────────────────────────────────────────────────────────────────────────────────────
EVENT_BYTES_MAX = 1024 * 1024  # bytes of one event; 300 VMs' names and 16 reasons have some 30 KB
STREAM_SILENCE_S = 30.0  # seconds without a byte after which a stream is given up; the service sends one every 10
STREAM_RETRY_S = 0.5  # seconds before a stream is connected again; doubles to STREAM_RETRY_MAX_S
STREAM_RETRY_MAX_S = 10.0  # seconds

LINE_BYTES_MAX = 256 * 1024  # bytes of one JSON line; a problem with 16 reasons has some 10 KB

# ── the daemon ─────────────────────────────────────────────────────────────────────────────────────────────────
SECRET_ARENA_BYTES = 64 * 1024  # bytes asked of memfd_secret at a time; room for 1,024 keys
HOOK_MAX_S = 3600.0  # seconds; an evacuation takes minutes
HOOKS_AT_ONCE = 16  # programs; a host that is revoked may have thousands of VMs
SERVICE_CLOCK_MOVED_S = 5.0  # seconds by which the service's clock may seem to move between two attestations
JUDGE_S = 0.5  # seconds between looks at the leases' ends; events are acted on at once
ATTEST_RETRY_S = 2.0  # seconds after an attestation that reached nobody; doubles to what the service said
ATTEST_MIN_S = 1.0  # seconds between attestations, whatever asks for them
LOCAL_REQUEST_BYTES_MAX = 2 * 1024 * 1024  # bytes of a helper's line; a configuration has 1 MiB at most, in base64
LOCAL_ANSWER_BYTES_MAX = 8 * 1024 * 1024  # bytes of an answer; a status of 10,000 VMs has 2 MB
LOCAL_CONNECTIONS_MAX = 64  # helpers at a time
LOCAL_CALL_S = 180.0  # seconds; a launch waits for the TPM, see TPM_CALL_S

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

# ── logs ───────────────────────────────────────────────────────────────────────────────────────────────────────
BOOT_LOG_BYTES_MAX = 1024 * 1024  # bytes; what the service takes. Real ones have 20 to 100 KB
IMA_INCREMENT_BYTES_MAX = 16 * 1024 * 1024  # bytes; what the service takes at a time, some 140,000 entries
IMA_LIST_BYTES_MAX = 512 * 1024 * 1024  # bytes; 2,000,000 entries, the most that the service follows, of 256 bytes
LAUNCH_LOG_BYTES_MAX = 8 * 1024 * 1024  # bytes; 10,000 starts a boot and more

# ── keys in memory ─────────────────────────────────────────────────────────────────────────────────────────────
SECRET_BYTES_MAX = 512  # bytes; the largest plaintext of an RSA-4096 key
DERIVED_BYTES_MIN = 16  # bytes; AES-128
DERIVED_BYTES_MAX = 64  # bytes; AES-256-XTS
SESSION_KEY_BYTES = 32  # bytes; AES-256
OPENED_A_TURN = 256  # keys of a batch opened before other tasks get their turn; some 10 ms
WRAPPED_KEY_BYTES_MAX = 72  # bytes; RFC 5649 adds 8 to the largest VM key

# ── the agent's folder ─────────────────────────────────────────────────────────────────────────────────────────
STATE_FILE_BYTES_MAX = 64 * 1024  # bytes; the largest is a chain of certificates

# ── VM configuration ───────────────────────────────────────────────────────────────────────────────────────────
CONFIG_BYTES_MAX = 1024 * 1024  # bytes of domain XML or JSON; a domain with hundreds of disks has some 200 KB
CONFIG_LEVELS_MAX = 64  # elements in one another; domains nest some 8, and each image of a backing chain one more
CONFIG_DEPTH_MAX = 2 * CONFIG_LEVELS_MAX + 2  # levels of JSON; an element's canonical form takes two
CONFIG_ELEMENTS_MAX = 20_000  # elements; 1 MiB of the smallest ones would be 260,000

# ── packages ───────────────────────────────────────────────────────────────────────────────────────────────────
PACKAGE_INDEX_BYTES_MAX = 64 * 1024 * 1024  # bytes of dpkg's status or of one list; 60,000 packages have some 60 MB
HASH_CHUNK_BYTES = 256 * 1024  # bytes read at a time; larger ones are no faster
DEB_MEMBERS_MAX = 1_000_000  # files in one package; the largest of Debian have some 100,000
SYMLINKS_MAX = 40  # links followed in one path; as many as Linux follows (path_resolution(7))

# ── memory images ──────────────────────────────────────────────────────────────────────────────────────────────
IMAGE_CHUNK_BYTES = 1024 * 1024  # bytes; larger ones are no faster, and a page is read in the time of one
IMAGE_CHUNK_BYTES_MIN = 4096  # bytes; a page
IMAGE_CHUNK_BYTES_MAX = 16 * 1024 * 1024  # bytes held at once, three times over
IMAGE_HEADER_BYTES_MAX = 4096  # bytes; names are bounded, so that headers have some 300
XTS_UNIT_BYTES = 1024 * 1024  # bytes; smaller ones are slower, a cipher context each. IEEE 1619 §5.1 allows 16 MiB
IMAGE_TOLD_EVERY_S = 10.0  # seconds between two lines about long work, where there is no terminal
# ── copies of the audit log ────────────────────────────────────────────────────────────────────────────────────
KEY_FILE_BYTES_MAX = 16 * 1024  # bytes of a copy's pinned keys; each has some 100

# ── hypervisors ────────────────────────────────────────────────────────────────────────────────────────────────
QMP_CONNECT_S = 20.0  # seconds until QEMU speaks QMP; it sets up a large guest's memory before
QMP_CALL_S = 60.0  # seconds for one QMP command; stopping a VM waits for its disks
RUN_STATE_POLL_S = 0.001  # seconds between looks at a VM that QEMU is about to let run; it takes some 10 ms
VM_STOP_S = 30.0  # seconds for QEMU to end after ``quit``; it flushes its disks
VTPM_START_S = 10.0  # seconds; starting takes 5 ms, a busy machine longer
PROGRAM_LOG_BYTES_MAX = 2048  # bytes of a program's last words that go into an error
DISK_ATTEMPTS_MAX = 50  # count, of some 20 ms; QEMU 7.2 fails to measure its PBKDF2 on coarse clocks, a fifth or more
PSK_BYTES_MIN = 32  # bytes; RFC 9257 §6 asks for 128 bits of entropy and more
PSK_BYTES_MAX = 64  # bytes; the longest that TLS 1.2 peers must take (RFC 4279 §5.4)
HOOK_CHECK_S = 60.0  # seconds for the check of an incoming VM; it attests, and slow TPMs take seconds
VIRSH_S = 30.0  # seconds for one virsh command
SOCKET_PATH_BYTES_MAX = 107  # bytes; sun_path without its NUL (unix(7))

# ── migration ──────────────────────────────────────────────────────────────────────────────────────────────────
MIGRATION_POLL_S = 0.02  # seconds between a destination's looks at whether its VM may run; a look takes some 2 ms
GUEST_WAIT_S = 300  # seconds that one end of a migration waits for the other, unless told
GUEST_LOOK_S = 0.25  # seconds between its looks
GUEST_ASK_S = 1.0  # seconds between questions to a service that doesn't answer whose a VM is
