"""Every bound of hsm_adapter: name, unit, source. Ends of ranges are inclusive."""

from __future__ import annotations

# ── frames ─────────────────────────────────────────────────────────────────────────────────────────────────────
FRAME_BYTES_MAX = 4 * 1024 * 1024  # bytes; FRAME_OPERATIONS_MAX of the largest operation, a CreateKey, with room
FRAME_OPERATIONS_MAX = 512  # operations; about 50 ms of SoftHSM work, so that no frame starves the others
CONNECTIONS_MAX = 256  # connections; a few for each web worker of one machine, of which the settings allow 64
RECEIVE_BYTES = 64 * 1024  # bytes asked of the kernel in one recv; malloc maps and unmaps 128 KiB and more each time

# ── fields ─────────────────────────────────────────────────────────────────────────────────────────────────────
NAME_CHARACTERS_MAX = 255  # characters of a VM or host id; at most 1,020 bytes of UTF-8, inside a u16 field
ATTRIBUTES_BYTES_MAX = 4096  # bytes bound to one key record
BINDING_NAME_BYTES_MAX = 66  # bytes; TPM Name of a SHA-512 object (TPM 2.0 Part 1 §16, 2 + 64)
SESSION_ID_BYTES = 16  # bytes; random, 128 bits
MAC_BYTES = 32  # bytes; HMAC-SHA-256 untruncated
WRAPPED_BYTES_MAX = 72  # bytes; RFC 5649 §4.1 adds 8 to a multiple of 8, and 64 is our longest key
RSA_MODULUS_BYTES = 256  # bytes; RSA-2048, the size every TPM 2.0 has (TCG PC Client Profile)
OUTPUT_BYTES_MAX = 512  # bytes that one call gives; RSA-4096, the largest recovery key
RECOVERY_BITS = (3072, 4096)  # of a recovery key; NIST SP 800-57 Part 1 §5.6.1: 128 bits of strength and more
BACKUP_BYTES_MAX = 8192  # bytes of a key's backup; RSA-4096 and PKCS #8 in base64 have some 1,200
RSA_EXPONENT = 65537  # TPM 2.0 Part 2 §12.2.3.5: the default, and the only one every TPM takes
DATA_BYTES_MAX = 65536  # bytes given to one Mac or Sign
RANDOM_BYTES_MAX = 4096  # bytes of one Random
U32_MAX = 0xFFFF_FFFF

# ── the worker ─────────────────────────────────────────────────────────────────────────────────────────────────
OPEN_SESSIONS_MAX = 4096  # sessions whose two key handles stay open; 16 KB each in SoftHSM, so 64 MB
RECYCLE_AFTER_OPERATIONS = 500_000  # operations; SoftHSM 2.6.1 leaks about 170 bytes an unwrap: 85 MB
SELF_TEST_INTERVAL_S = 60.0  # seconds
HEAL_BACKOFF_S = 1.0  # seconds between attempts to reopen a broken token
KEY_REFRESH_INTERVAL_S = 1.0  # seconds between searches for one key version that the worker doesn't know
KEY_SEARCHES_MAX = 16  # searches in that time for different versions; each takes some 5 ms with SoftHSM
TOKEN_LOCK_S = 0.1  # seconds that a worker, and so its clients, wait for another one that changes the token; 30 ms each
TOKEN_LOCK_COMMAND_S = 10.0  # seconds that a command waits for it
DRAIN_S = 5.0  # seconds that clients have to read their last replies after SIGTERM or at recycling
SIMULATED_DELAY_MAX_MS = 100.0  # milliseconds; network HSMs answer in 1 to 5, one across an ocean in 100
BACKGROUND_STARVE_S = 0.05  # seconds after which a background frame is served though others wait
LISTEN_BACKLOG = 64  # connections waiting for accept

# ── the token ──────────────────────────────────────────────────────────────────────────────────────────────────
TOKEN_OBJECTS_MAX = 1000  # objects looked through at opening; SoftHSM's search is linear, 14 ms at 1,000
KEY_VERSION_MAX = 1_000_000  # count of KEK versions a label may name
KEY_VERSION_STEP_MAX = 16  # how far a new version's number may be past the newest; gaps are those that were given up
PIN_BYTES_MAX = 255  # bytes; SoftHSM's MAX_PIN_LEN, and no module we know takes more
TOKEN_LABEL_BYTES = 32  # bytes; PKCS #11 v3.0 §3.3 CK_TOKEN_INFO.label, blank padded
SETTINGS_BYTES_MAX = 65536  # bytes
