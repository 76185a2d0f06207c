"""Every bound of the service: name, unit, source. Ends of ranges are inclusive."""

from __future__ import annotations

# ── policy ─────────────────────────────────────────────────────────────────────────────────────────────────────
TAG_AGE_MAX_S = 5 * 366 * 86400  # seconds; a survey older than five years is no survey
EVIDENCE_AGE_MAX_S = 86400  # seconds; older evidence would say nothing about now
LEASE_MAX_S = 7 * 86400  # seconds; NIST SP 800-57 Part 1 §5.3 wants short originator-usage periods

COMPILED_POLICIES_MAX = 1024  # policies kept ready to decide with, about 1 KB each

# ── protocol ───────────────────────────────────────────────────────────────────────────────────────────────────
NONCE_BYTES = 32  # bytes; TPM 2.0 qualifyingData holds at most a SHA-512 digest, and ours goes through SHA-256
NONCE_LIFE_S = 120  # seconds; real TPMs take up to 2 s for an exchange, slow networks a few more
NONCES_PER_HOST_MAX = 4  # count; an agent, a retry of it, and a person looking on
ENROLMENT_LIFE_S = 300  # seconds between MakeCredential and its proof
CREDENTIAL_SECRET_BYTES = 32  # bytes; TPM2B_DIGEST of the SHA-256 EK (TPM 2.0 Part 1 §24.4)
SESSION_ID_BYTES = 16  # bytes; random, 128 bits
SESSION_LIFE_S = 300  # seconds; ten attestation intervals of 30 s
RELEASE_ATTEMPTS_MAX = 5  # count; compare-and-set retries when another worker moved a record in between
RELEASE_PLANNED_TOGETHER = 256  # VMs of a batch that are decided before the HSM gets them; half of a full frame
RELEASE_SLICE_FIRST = 16  # VMs of a batch in lines that are decided first, so that one can start; some 5 ms
RELEASE_SLICE = 128  # VMs decided and committed together; other callers wait for some 10 ms of HSM and event loop
RELEASE_SLICES_AHEAD = 2  # slices worked on while another's lines are sent: one in the HSM, one on its way to the disk

# ── certificates ───────────────────────────────────────────────────────────────────────────────────────────────
CA_LIFE_S = 10 * 366 * 86400  # seconds
HOST_CERTIFICATE_LIFE_S = 366 * 86400  # seconds
STAFF_CERTIFICATE_LIFE_S = 366 * 86400  # seconds
SERVER_CERTIFICATE_LIFE_S = 366 * 86400  # seconds
CERTIFICATE_BACKDATE_S = 300  # seconds; clocks of hosts and service differ
CSR_BYTES_MAX = 16384  # bytes of PEM
CERTIFICATE_RENEW_S = 30 * 86400  # seconds left below which a certificate is issued anew
CERTIFICATE_OVERLAP_S = (
    7 * 86400
)  # seconds for which the one before is good too: a host that lost the answer, and power
CA_WATCH_S = 1.0  # seconds between looks of a web worker at the CA's versions and at its own certificate
CA_SETTLE_S = 5  # seconds until a new CA version issues: every web worker knows it then, several looks over
CA_ISSUED_LATE_S = 60  # seconds more in which the version before may still have issued; as SIGNING_CLAIM_S

# ── HTTP ───────────────────────────────────────────────────────────────────────────────────────────────────────
BODY_BYTES_MAX = 2 * 1024 * 1024  # bytes; 10,000 VM entries of some 150 bytes
UNPROVEN_WINDOW_S = 60  # seconds in which a web worker writes so many audit entries of callers who proved nothing
UNPROVEN_ENTRIES_MAX = 30  # entries; some 700 bytes each, so 30 MB a day at most
EVIDENCE_BODY_BYTES_MAX = 24 * 1024 * 1024  # bytes; 16 MiB of IMA entries and 1 MiB of boot log in base64, and the rest
PAGE_DEFAULT = 100  # items
PAGE_MAX = 1000  # items
LISTEN_BACKLOG = 1024  # connections that wait while a worker restarts
METRICS_FLUSH_S = 0.25  # seconds that a worker's counts may be behind in what another one tells Prometheus
AUDIT_HEADS_MAX = 512  # pairs of action and outcome in the audit log, more than there are
KEEPALIVE_S = 300  # seconds; ten attestation intervals, so that a steady agent never handshakes anew
RETRY_AFTER_S = 1  # seconds; a worker is replaced within one
SHUTDOWN_GRACE_S = 10  # seconds that open requests have after SIGTERM
ORPHAN_GRACE_S = 1  # the same, when the supervisor is dead, and with it the HSM workers that it ran
IDENTITY_CACHE_MAX = 65_536  # client certificates parsed once each, about 1 KB

# ── rates and quotas ───────────────────────────────────────────────────────────────────────────────────────────
RATE_BUCKETS_MAX = 65_536  # callers of one limit that a web worker remembers, some 150 bytes each
RATE_MAX = 1_000_000.0  # a second; more than any web worker answers
BURST_MAX = 100_000_000.0  # at once; as good as no limit

# ── custody ────────────────────────────────────────────────────────────────────────────────────────────────────
HSM_OPERATION_DEADLINE_S = 5.0  # seconds; a network HSM answers in 1–5 ms, a hung one never
HSM_OPERATION_SLOW_S = 0.012  # seconds; a rewrap is five PKCS#11 calls, of 2.4 ms each on a slow network HSM
HSM_PING_DEADLINE_S = 20.0  # seconds; a ping waits behind two full frames of each of two web workers
HSM_START_DEADLINE_S = 30.0  # seconds from its start until a worker listens; C_Initialize and login of a network HSM
HSM_START_EACH_S = 1.0  # seconds more for each HSM worker: they start together, half a second of one core each
HSM_FRAME_OPERATIONS_MAX = 256  # operations a frame; about 20–60 ms of SoftHSM work
HSM_FRAME_OPERATIONS_MIN = 8  # operations; smaller shares cost more in frames than they gain in parallel
HSM_FRAME_S = 0.1  # seconds of work a frame: others wait for it. 256 of SoftHSM's operations take 0.06 at most
HSM_FRAME_LEAST_S = 0.002  # seconds of work that are worth sharing out; a network HSM's single operation is
HSM_FRAMES_IN_FLIGHT = 2  # frames a worker: one being worked on, one waiting in its socket
HSM_CLIENTS = 2  # count; clients that send full frames to one HSM worker, unless the settings say otherwise
HSM_QUEUE_DEADLINE_S = 10.0  # seconds that an operation waits for a healthy worker, and what is before it in the queue
HSM_WATCH_S = 0.5  # seconds between looks at deadlines and health
HSM_ATTEMPTS_MAX = 4  # count; one more than the workers that may die under a request
HSM_RECONNECT_S = 0.05  # seconds between attempts to reach a worker that is starting
HSM_QUEUE_MAX = 50_000  # operations waiting in one web worker; beyond it, callers are told to come back
VERIFIED_BYTES_MAX = 64 * 1024 * 1024  # bytes of such records, as stored; decoded ones take a few times as much
VERIFIED_RECORDS_MAX = 16_384  # records whose seal was checked, kept with their exact bytes
VERIFIED_DIGESTS_MAX = 262_144  # more of them by SHA-256, 250 bytes each: five records of each of 50,000 hosts

# ── processes ──────────────────────────────────────────────────────────────────────────────────────────────────
WATCHDOG_INTERVAL_S = 1.0  # seconds between the supervisor's pings
RESTART_DELAY_S = 0.1  # seconds before a dead worker is started again; doubles to RESTART_DELAY_MAX_S
RESTART_DELAY_MAX_S = 10.0  # seconds
WORKER_STEADY_S = 30.0  # seconds of life after which a worker's restart delay starts over
BEAT_S = 0.5  # seconds between signs of life of the service's own processes
BEAT_MISSED_S = 1.5  # seconds without one after which /readyz tells
WORKER_SILENT_MAX_S = 10.0  # seconds without one after which a process is replaced; a loop is held some 0.3 s at most
WORKER_START_DEADLINE_S = 20.0  # seconds that a process has for its imports until its first one; they take one
HEALTH_CHECK_S = 1.8  # seconds that /readyz takes at most: more than any store's probe, and it tells within 2
HEALTH_LOOK_S = 0.1  # seconds between looks at the HSM workers while it waits
DRAIN_S = 1.0  # seconds after SIGTERM in which connections end with their next answer; idle ones are closed then
SERVING_LOOK_S = 0.2  # seconds between looks of the supervisor at who serves, and signs of life to its own watchdog
DRAIN_NEW_S = 1.0  # seconds more for connections that were only being made then, and for goodbyes (TLS close_notify)
HSM_SILENT_S = 1.0  # seconds beyond twice what frames took lately, after which a worker gets no more operations

# ── clock ──────────────────────────────────────────────────────────────────────────────────────────────────────
CLOCK_BACKWARDS_MAX_S = 5  # seconds that the clock may stand before the newest audit entry
CLOCK_STEP_MAX_S = 5  # seconds by which the clock may be set while a process runs; NTP slews what is under 0.128
CLOCK_LOOK_S = 1.0  # seconds between looks at whether it was set

# ── TPM structures and evidence ────────────────────────────────────────────────────────────────────────────────
TPM_DIGEST_BYTES_MAX = 64  # bytes; TPM2B_DIGEST holds at most a SHA-512 (TPM 2.0 Part 2 §10.4.2)
TPM_NAME_BYTES_MAX = 2 + TPM_DIGEST_BYTES_MAX  # bytes; nameAlg and digest (Part 2 §10.5.3)
TPM_DATA_BYTES_MAX = TPM_NAME_BYTES_MAX  # bytes; TPM2B_DATA is as large as a TPMT_HA (Part 2 §10.4.3)
TPM_RSA_BITS_MIN = 2048  # bits; NIST SP 800-131A, smaller ones are disallowed
TPM_RSA_BITS_MAX = 4096  # bits; the largest that TPMs make
TPM_RSA_BYTES_MAX = TPM_RSA_BITS_MAX // 8
TPM_ECC_BYTES_MAX = 66  # bytes of a coordinate; P-521
TPM_PUBLIC_BYTES_MAX = 1024  # bytes of TPMT_PUBLIC; RSA-4096 with a SHA-512 policy has about 600
TPM_PCR_SELECTIONS_MAX = 16  # banks in one TPML_PCR_SELECTION (Part 2 §10.9.7, HASH_COUNT)
TPM_PCR_SELECT_BYTES_MAX = 4  # bytes of one bank's bitmap: 32 PCRs; PC clients have 24
TPM_NV_CONTENTS_BYTES_MAX = 1024  # bytes of one NV_Certify; common MAX_NV_BUFFER_SIZE values are 512 to 1024

ATTESTATION_KEYS_CACHED = 65_536  # AKs parsed and checked once each, 2.4 KB measured
GEO_TAGS_CACHED = 65_536  # tags whose signature was verified, by their exact bytes, 0.8 KB measured
BASELINES_DECODED = 256  # golden boots kept ready to compare with, some 50 KB each
BINDING_POLICIES_CACHED = 4096  # PolicyPCR digests, about 1.5 KB; a fleet has few distinct boot states

EK_CERTIFICATE_BYTES_MAX = 6144  # bytes with padding; NV indices hold 1–4 KB, and the wire caps it here
EK_CHAIN_MAX = 4  # certificates sent with an EK: leaf and intermediates
EK_CHAIN_DEPTH_MAX = EK_CHAIN_MAX  # intermediates between leaf and vendor CA; more than are sent there can't be

# ── boot log ───────────────────────────────────────────────────────────────────────────────────────────────────
BOOT_LOG_BYTES_MAX = 1024 * 1024  # bytes; servers write 20–100 KB, and Linux keeps 64–256 KB of memory for it
BOOT_EVENTS_MAX = 8192  # events; GRUB with a long configuration writes some 600
BOOT_EVENT_BYTES_MAX = 256 * 1024  # bytes of one event; the largest is dbx, some 24 KB
BOOT_PCRS = 24  # PCRs of a PC client TPM (PC Client PTP §4.6.1)
BOOT_NAME_CHARS_MAX = 256  # characters of a variable's name, a file's or a certificate's; Linux paths come longer
BOOT_SIGNATURE_LISTS_MAX = 1024  # EFI_SIGNATURE_LISTs in a variable; one a certificate, dozens are common
BOOT_CERTIFICATES_MAX = 256  # certificates in one variable; dozens are common
BOOT_PATH_NODES_MAX = 64  # nodes of one device path; about ten are common
BOOT_GPT_ENTRIES_MAX = 1024  # partitions; UEFI tables have room for 128 by default
BOOT_DIFFERENCES_MAX = 100  # differences that are told; whoever has more reads no further
BOOT_REASONS_MAX = 32  # reasons against PCR 7 that are told; a made-up log could give thousands
BOOT_VERDICTS_CACHED = 4096  # appraised logs, 3–19 KB measured each; one more is appraised in 1 ms
IMA_INCREMENT_BYTES_MAX = 16 * 1024 * 1024  # bytes; some 140,000 entries
IMA_ENTRIES_MAX = 2_000_000  # entries of one boot; a busy hypervisor measures some 10,000
IMA_ENTRY_BYTES_MAX = 1024 * 1024  # bytes of one entry's fields; buffers hold keys and command lines
IMA_TEMPLATE_NAME_BYTES_MAX = 15  # bytes; MAX_TEMPLATE_NAME_LEN
RUNTIME_REASONS_MAX = 16  # failures of one host that are told in words; the rest is counted
RUNTIME_POLICY_BYTES_MAX = 3 * 1024 * 1024  # bytes packed, what one store value holds: some 60,000 files
RUNTIME_POLICIES_MAX = 8  # in force at once: every host is held against each
LAUNCHED_VMS_MAX = 10_000  # VMs that one host may start in one boot; some 100 bytes each in its record

# ── platform identity ──────────────────────────────────────────────────────────────────────────────────────────
TPM_NV_CLOCK_INTERVAL_MAX_MS = 2**22  # milliseconds; Clock is saved at least every 69.9 minutes (Part 1 §36.3.2)
TPM_CLOCK_DRIFT_PERCENT = 33  # percent; oscillators within 15 %, and as much by TPM2_ClockRateAdjust: 1.15² is 1.32
TPM_CLOCK_SLACK_MS = (NONCE_LIFE_S + CLOCK_BACKWARDS_MAX_S) * 1000  # milliseconds; quoting to arrival, our clock

DER_DEPTH_MAX = 16  # levels; a certificate's deepest extensions are at 10
CRL_BYTES_MAX = 32 * 1024 * 1024  # bytes of one file; the largest public CRLs have some 20 MB
CRL_SIGNATURES_CACHED = 256  # verified (CRL, issuer key) pairs; a folder has a few dozen
EK_MODEL_CHARS_MAX = 64  # characters of a TPM's model; X.520 ub-name is 64 for most attributes
NAME_CHARS_SHOWN = 200  # characters of a foreign certificate's name in a message

# ── store ──────────────────────────────────────────────────────────────────────────────────────────────────────
STORE_KEY_BYTES_MAX = 511  # bytes; LMDB's MDB_MAXKEYSIZE as built
STORE_VALUE_BYTES_MAX = 4 * 1024 * 1024  # bytes; a packed runtime policy has up to 3 MiB
OP_ID_BYTES_MAX = 64  # bytes; a SHA-512 digest, and well under what a key may have
COMMIT_WRITES_MAX = 50_000  # keys and entries a commit: a batch of 10,000 VMs moves a few records each
COMMIT_BYTES_MAX = 64 * 1024 * 1024  # bytes of keys, values and entries a commit; LMDB holds its pages in memory
SCAN_MAX = 1000  # records a page
GROUP_WRITES_MAX = 4096  # keys and entries a transaction: some 20 ms of work between two fsyncs
GROUP_BYTES_MAX = 8 * 1024 * 1024  # bytes a transaction; as long to write as the above
BULK_COMMIT_MAX = 5000  # records a commit of an import
LMDB_READERS_MAX = 512  # reader slots: a few a process
LMDB_SPARE_READS = 2  # read transactions kept for reuse, so that a read takes no lock
LMDB_RESERVE_BYTES = 1024 * 1024  # bytes of the map that only what mends a full store may use; half of it refusals too
LMDB_RESERVE_SHARE = 8  # the reserve is at most this part of the map: 1/8
LMDB_REFUSAL_BYTES_MAX = 16 * 1024  # bytes of a lone entry that may use half of the reserve; a refusal has 1 KB or two
LMDB_NEAR_END_BYTES = 2 * 1024**3  # bytes; a group of the above bounds, each write on its own path of pages, is less
WATCH_INTERVAL_S = 0.05  # seconds between looks at the store's version
WATCH_PENDING_MAX = 100_000  # keys that one watcher may leave unheard, some 100 bytes each
CHANGELOG_KEYS_MAX = 100_000  # changed keys that watchers may fall behind, some 60 bytes each on disk
OPERATIONS_KEPT = 100_000  # op ids remembered, some 130 bytes each
DISK_RESERVE_BYTES = 64 * 1024 * 1024  # bytes; below it the service says that it isn't ready, before commits fail
STORE_STALL_S = 10.0  # seconds that a transaction may wait for lock and disk before the store is called stuck
STORE_PROBE_BYTES = 64 * 1024  # bytes of pages that a health check asks for when room was short; a commit takes 10–20
STORE_PROBE_S = 1.3  # seconds that a health check waits for the commit that tells whether there is room again
STORE_PROBE_EVERY_S = 0.5  # seconds without a commit after which health tries one: only that tells that a disk writes
POSTGRES_CONNECTIONS = 6  # a process, to read
POSTGRES_WRITERS = 2  # connections a process for commits, that no read may use; a node of three processes takes 27
POSTGRES_CONNECT_S = 2.0  # seconds to reach one server, check it and see one commit reach its standbys
POSTGRES_READ_S = 2.0  # seconds for a read with its barrier, and for a connection to get free
POSTGRES_LONG_WAIT_S = 0.25  # seconds; a commit that takes longer may have been let go instead of acknowledged
POSTGRES_COMMIT_S = 5.0  # seconds for one statement of a commit; after COMMIT was sent, the outcome is unknown
POSTGRES_LOCK_S = 4.0  # seconds that a commit waits for other nodes' before nothing is applied; < POSTGRES_COMMIT_S
POSTGRES_IDLE_S = 5.0  # seconds that a node may hold the lock without a word (it is frozen, or cut off)
POSTGRES_PROBE_S = 1.5  # seconds that a health check waits for its commit; the whole check answers in 2
POSTGRES_CLOCK_APART_S = 2.0  # seconds between a node's clock and the primary's; NTP keeps them within milliseconds
SITE_LEASE_S = 90  # seconds of a lease renewed at a site that is cut off; agents ask every 30
SITE_LOOK_S = 5.0  # seconds for which a site that found itself cut off doesn't try the primary again for a renewal
POSTGRES_READS_TOGETHER = 4  # batches of reads under way, each with one barrier
POSTGRES_COPY_MIN = 500  # new records a transaction from which COPY is quicker than INSERT
POSTGRES_COUNTERS_MAX = 1000  # numbers that a process remembers, some 200 bytes each; a tenant has one
POSTGRES_PAGES_AHEAD = 2  # commits of an import under way, so that the next is ready when one is durable
POSTGRES_LOOK_S = 1.0  # seconds between looks for changes when no notification came: one may be lost with its node
POSTGRES_DEAF_S = 10.0  # seconds without a look after which watchers hear that changes may be missed

# ── migration ──────────────────────────────────────────────────────────────────────────────────────────────────
MIGRATION_LIFE_S = 3600  # seconds from begin to switchover unless told; 1 TB of guest memory at 10 Gbit/s takes 900
MIGRATIONS_PAST = 8  # ids of a VM's earlier migrations that are remembered: a late call begins none of them anew

# ── lifecycle ──────────────────────────────────────────────────────────────────────────────────────────────────
DESTROY_AFTER_MIN_S = 86400  # seconds; a day, so that whoever misses the key can say so
DESTROY_AFTER_MAX_S = 365 * 86400  # seconds; a longer wait is a plan, not a schedule
DESTROY_AFTER_DEFAULT_S = 7 * 86400  # seconds
ACTIVATES_MAX_S = 5 * 366 * 86400  # seconds; NIST SP 800-57 Part 1 §5.3.6: cryptoperiods end within a few years
READABLE_DEFAULT_S = 7 * 86400  # seconds; LEASE_MAX_S: whoever holds the old version has renewed its lease by then
READABLE_MAX_S = 366 * 86400  # seconds
OLD_VERSIONS_MAX = 16  # versions of one VM that are still readable; each is a record
LIST_SCAN_MAX = 1000  # records that one page of a list looks at, some 5 µs each; PAGE_MAX, or pages would be short
LIST_TOMBSTONES_MAX = 500  # destroyed keys that a page looks at; each record's seal is an HSM operation
LIST_PROBE = 64  # index records read to see which index of a filter is the sparsest
DUE_INTERVAL_S = 1.0  # seconds between looks at what fell due; an empty look is one read
DUE_STEP_MAX = 1000  # keys that one step settles, some 0.2 s; SCAN_MAX
DUE_RETRY_S = 3600  # seconds until a key is looked at again that couldn't be settled
VM_ROTATION_PAGE = 256  # VMs that a rotation looks at between two commits; one HSM frame
ROTATION_STEP_PAGES = 8  # pages of each rotation a step; a second or so
ROTATIONS_AT_ONCE = 16  # rotations of many keys that run at the same time
DUE_TOGETHER = 64  # keys settled at the same time, so that their commits share an fsync
# ── audit log ──────────────────────────────────────────────────────────────────────────────────────────────────
LOG_ENTRY_BYTES_MAX = 65_535  # bytes; an entry's length in a bundle is a u16 (C2SP tlog-tiles, "Log entries")
LOG_VMS_AN_ENTRY_MAX = 300  # VMs named in one entry, each with policy and tenant: names of 63 characters, quoted
LOG_FACT_BYTES_MAX = 512  # bytes of JSON of one fact that are kept of an entry that would be too large
LOG_REASONS_MAX = 16  # reasons that are kept of an entry that would be too large
LOG_REASON_CHARS_MAX = 128  # characters of each of their four texts; up to six bytes each in JSON
CHECKPOINT_INTERVAL_S = 1.0  # seconds between checkpoints: a signature of the HSM each
ANCHOR_INTERVAL_S = 60.0  # seconds between writes of the token's anchor; tokens keep it in flash
ANCHOR_INTERVAL_MAX_S = 3600.0  # seconds; an hour of releases that could be undone unseen
CHECKPOINT_ATTEMPTS_MAX = 5  # count; compare-and-set retries when another process moved the checkpoint
LOG_ORIGIN_CHARS_MAX = 128  # characters; a line of each checkpoint
WITNESSES_MAX = 16  # count; as many signatures as every reader of notes takes (C2SP signed-note)
WITNESS_DEADLINE_S = 5.0  # seconds; public ones answer within one
WITNESS_ANSWER_BYTES_MAX = 16 * 1024  # bytes; a cosignature has some 150
WITNESS_BACKOFF_MAX_S = 60  # seconds between attempts at a witness that failed; doubles from 1
WITNESS_FRESH_S = 120  # seconds for which a cosignature counts as the witness' watching
AUDIT_SCAN_MAX = 20_000  # entries that one search call looks at, some 10 ms of work a thousand
AUDIT_TEXT_CHARS_MAX = 256  # characters of a text that is searched for; names have 63, codes some 30
UNIX_TIME_MAX = 10**12  # seconds; the year 33,658

# ── background ─────────────────────────────────────────────────────────────────────────────────────────────────
BACKGROUND_NICE = 5  # nice value of the background process' own thread; a third of a web worker's share (sched(7))
BACKGROUND_LOCK_RETRY_S = 1.0  # seconds between attempts to become the one that works
HEARTBEAT_S = 20.0  # seconds between signs of life of the background process
HEARTBEAT_MISSED_S = 90  # seconds without one after which /readyz tells
JOB_DELAY_MAX_S = 60.0  # seconds that a failing job waits at most before it is tried again
JOB_FAILURES_SHOWN = 3  # failures in a row from which on /readyz tells; fewer are a worker that was replaced
JOB_DETAIL_CHARS_MAX = 500  # characters of what went wrong

# ── rotation of the HSM's keys ─────────────────────────────────────────────────────────────────────────────────
ROTATION_PAGE = 500  # records a commit while nobody else commits; some 3 ms of the write lock, 40 ms of two HSM workers
ROTATION_PAGE_BESIDE = 32  # records a commit beside others; a release waits for 3 ms of one HSM worker at most
ROTATION_AHEAD = 3  # pages in the HSM while one is committed, so that its workers never wait for the disk
ROTATION_SCANNED = 20  # pages without a record to move before the cursor is kept
ROTATION_QUIET_COMMITS_S = 20.0  # others' commits a second below which nobody is in the way
ROTATION_QUIET_S = 1.0  # seconds over which they are counted
ROTATION_REST = 2.0  # times what a page took, to rest beside others: a third of the time is worked
ROTATION_REST_MAX_S = 0.5  # seconds
ROTATION_RATE_S = 5.0  # seconds over which the rate is told
ROTATION_FAILURES_SHOWN = 100  # records that couldn't be moved, told by name; all are counted
NODE_STEP_S = 2.0  # seconds between a node's looks for what other nodes made in, or destroyed of, their tokens
NODE_BEAT_S = 10.0  # seconds between two signs of life of a node that has nothing new to tell
NODE_LOOK_S = 0.2  # seconds between looks at what the other nodes say while one waits for them
NODE_LIVE_S = 40.0  # seconds after its last sign of life for which the others wait for a node; some beats may be late
NODE_WAIT_S = 8.0  # seconds that the rotation of a signing key waits for the other nodes; a few steps of theirs
ROTATION_STEP_S = 1.0  # seconds between looks for a rotation to do
KEY_USERS_SHOWN = 10  # records or hosts that need an old version, told by name; all are counted
HSM_LISTEN_S = 0.1  # seconds between looks of the background at what a worker does for others
HSM_QUIET_OPERATIONS = 20  # of others between two looks; checkpoints and heartbeats are some five
HSM_FRAME_OPERATIONS_BACKGROUND = 32  # operations a frame of the background: some 4 ms that a release waits
HSM_FULL_S = 0.02  # seconds until a worker whose socket is full is asked again; it accepts many in that time
HSM_WORKER_ANSWER_S = 30.0  # seconds for one worker to make a key or look its token over, after what waits first

# ── signing keys ───────────────────────────────────────────────────────────────────────────────────────────────
SIGNING_VERSIONS_MAX = 64  # versions listed of one key, destroyed ones included; some 200 bytes each
SIGNING_LOST_MAX = 8  # versions made by attempts that ended before their commit, in a row
AUDIT_OVERLAP_S = 30 * 86400  # seconds in which checkpoints carry the signature of the key before, too
SIGNING_CLAIM_S = 60  # seconds; an HSM operation is given up after 4 attempts of 5 s and as long a wait for a worker

# ── recovery ───────────────────────────────────────────────────────────────────────────────────────────────────
VERIFY_FINDINGS_MAX = 1000  # findings of `store verify` that are told; all are counted
RECOVERY_SHARES_MAX = 16  # shares of a recovery key; SLIP-0039, "Format of the share mnemonic"
NODE_NAME_CHARS_MAX = 255  # characters; RFC 1035 §2.3.4: a host's name has no more
TOKEN_INVITATION_LIFE_S = 24 * 3600  # seconds; the private half lies on the new node's disk as long as it waits
TOKEN_INVITATION_EARLY_S = 300  # seconds by which the new node's clock may be ahead
TOKEN_COPY_BYTES_MAX = 16 * 1024 * 1024  # bytes of a token's files; a new SoftHSM token has some 20 KB
# ── officers ───────────────────────────────────────────────────────────────────────────────────────────────────
OFFICERS_MAX = 64  # count; all are read when approvals are counted
PROPOSAL_ID_BYTES = 8  # bytes; random, and one that is taken is refused
PROPOSAL_LIFE_S = 7 * 86400  # seconds; officers are people, with weekends
PROPOSALS_OPEN_MAX = 1000  # count; more wait for nobody, and each may carry megabytes
EXECUTION_ATTEMPTS_MAX = 5  # count; retries when another change came between reading the state and the act
VERIFIED_DECISIONS_MAX = 4096  # signatures remembered as good or bad, some 300 bytes each

# ── continuous trust ───────────────────────────────────────────────────────────────────────────────────────────
EVENTS_KEPT = 1000  # events of one host, some 300 bytes each; a host has a few a day
EVENT_VMS_MAX = 300  # VMs named in one event; as many as in an audit entry
EVENT_REASONS_MAX = 16  # reasons told with an event
FLEET_EVENTS_KEPT = 100_000  # events of all hosts, some 300 bytes each
FLEET_STEP_S = 0.1  # seconds between looks for events that the fleet's log hasn't got; an empty look is one read
FLEET_STEP_MAX = 500  # events moved into the fleet's log at a time
RENEW_PAGE = 1000  # leases renewed a call; SCAN_MAX, and some 0.1 s
TRUST_STEP_S = 0.2  # seconds between looks for trust to check; an empty look is two reads
TRUST_PAGE = 200  # hosts, or leases of one host, looked at between two commits
TRUST_CHECKS_AT_ONCE = 64  # checks of which one step does a page each
WEBHOOKS_MAX = 16  # count; each is told each event
WEBHOOK_DEADLINE_S = 5.0  # seconds for an answer
WEBHOOK_BACKOFF_MAX_S = 300.0  # seconds between attempts at one that fails; doubles from 2
WEBHOOK_STEP_MAX = 100  # events told to one between two notes of how far he is
WEBHOOK_SECRET_BYTES_MIN = 24  # bytes; Standard Webhooks, "Signature scheme": 24 to 64
WEBHOOK_SECRET_BYTES_MAX = 64
STREAM_HEARTBEAT_S = 10.0  # seconds between signs of life on a stream; an agent reconnects after three were missed
STREAM_LIFE_S = 3600.0  # seconds after which a stream ends, so that who listens is asked for anew
STREAM_WRITE_S = 20.0  # seconds that a listener may leave an event unread
STREAM_RETRY_MS = 500  # milliseconds that a listener waits before it connects again
STREAMS_A_HOST_MAX = 8  # streams of one host in a web worker; one more ends the oldest
STREAMS_MAX = 20_000  # streams in a web worker, some 60 KB each with their TLS
