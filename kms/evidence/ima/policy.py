"""A runtime policy made ready to judge a measurement list with."""

from __future__ import annotations

import hashlib
from binascii import unhexlify
from collections.abc import Iterator
from typing import NamedTuple

from keypeer.wire.runtime import RuntimePolicy
from kms.errors import BadRequest, Reason
from kms.evidence.ima.entry import VIOLATION, Entry
from kms.evidence.ima.globs import Globs
from kms.evidence.ima.signature import PublicKey, is_signed, load_signer

_SIGNED = frozenset((b"ima-sig", b"ima-sigv2"))
_BUFFER = b"ima-buf"
_BUFFER_HASHES = frozenset((b"sha1", b"sha256", b"sha384", b"sha512"))  # ima_hash; the policy's own digest decides


class _Signer(NamedTuple):
    key: PublicKey
    paths: Globs


class CompiledRuntime:
    """A valid policy. ``allowed`` holds whole claims, ``sha256:… /path``, so that a known file costs one look."""

    def __init__(self, name: str, document: RuntimePolicy) -> None:
        self.name = name
        self.sha1_boot_aggregate = document.sha1_boot_aggregate
        self.allowed = frozenset(
            f"{digest} {path}".encode()
            for files in document.sets.values()
            for path, digests in files.items()
            for digest in digests
        )
        self.paths = frozenset(path.encode() for files in document.sets.values() for path in files)
        self._excludes = Globs(document.excludes)
        self._signers = [_Signer(load_signer(each.name, each.pem), Globs(each.paths)) for each in document.keys]
        self._buffers = {name.encode(): frozenset(digests) for name, digests in document.buffers.items()}
        self.required: dict[bytes, str] = {}
        for need in document.require:
            digests = document.sets.get(need.of, {}).get(need.path)
            if digests is None:
                raise BadRequest(
                    "runtime.require",
                    f"runtime policy {name} requires {need.path} of set {need.of}, which has no such path",
                    hint="name a set that has it, or leave the requirement out",
                )
            self.required |= {f"{digest} {need.path}".encode(): need.path for digest in digests}

    def judge(self, entry: Entry, host: str, *, signatures: bool = True) -> Reason | None:
        """Why ``entry`` isn't allowed; None when it is. Its claim alone is known not to be enough. Without
        ``signatures``, who signed the file isn't looked at."""
        claimed, _, path = entry.claim.partition(b" ")
        if entry.template_hash == VIOLATION:
            return Reason(
                "runtime.violation",
                "files that don't change while they are measured or run",
                f"host {host} measured a violation (ToMToU or open writers) of {_shown(path)}",
                "stop what writes to the file, then reboot; IMA can't tell any more what ran",
            )
        if entry.template == _BUFFER:
            return self._judge_buffer(entry, claimed, path, host)
        if self._excludes.match(path):
            return None
        algorithm, _, digits = claimed.rpartition(b":")
        if signatures and self._signed(entry, algorithm, digits, path):
            return None
        known = "other digests of it" if path in self.paths else "nothing of that path"
        return Reason(
            "runtime.file",
            f"runtime policy {self.name} allows {known}",
            f"host {host} measured {_shown(path)} with {_shown(claimed)}",
            f"remove the file and reboot, or add it to {self.name} (keypeer baseline from-packages)",
        )

    def _judge_buffer(self, entry: Entry, claimed: bytes, name: bytes, host: str) -> Reason | None:
        digests = self._buffers.get(name)
        found = f"sha256:{hashlib.sha256(entry.extra).hexdigest()}"
        if not _is_buffers(claimed, entry.extra):
            return Reason(
                "runtime.buffer",
                "a buffer beside its own digest",
                f"host {host} sent {_shown(name)} with {_shown(claimed)}, which isn't that of the content {found}",
                f"host {host} sends the kernel's list unchanged; a file's entry may have been sent as a buffer's",
            )
        if digests is not None and (not digests or found in digests):
            return None
        return Reason(
            "runtime.buffer",
            f"runtime policy {self.name} allows buffers {_listed(self._buffers)}",
            f"host {host} measured {_shown(name)} with content {found}",
            f"name the buffer under buffers in {self.name}, with this digest if it is good",
        )

    def _signed(self, entry: Entry, algorithm: bytes, digits: bytes, path: bytes) -> bool:
        if entry.template not in _SIGNED or not entry.extra:
            return False
        plain = algorithm.rpartition(b":")[2]  # verity:sha256 in the v2 templates
        digest = unhexlify(digits)
        return any(
            signer.paths.match(path) and is_signed(entry.extra, plain, digest, signer.key) for signer in self._signers
        )

    def missing(self, seen: frozenset[str], host: str) -> Iterator[Reason]:
        """What is required and wasn't measured."""
        for path in sorted(set(self.required.values()) - seen):
            yield Reason(
                "runtime.required",
                f"runtime policy {self.name} requires {path} to run as its package has it",
                f"host {host} hasn't measured it since it booted",
                "start it under an IMA policy that measures it (ima_policy=tcb measures what root runs)",
            )


def _is_buffers(claimed: bytes, content: bytes) -> bool:
    """Whether the digest is the buffer's, as Linux makes it (process_buffer_measurement). No hash covers a template's
    name, and ima-sig has the same fields: a file of a buffer's name could be sent as one, its signature as content."""
    algorithm, _, digits = claimed.partition(b":")
    return algorithm in _BUFFER_HASHES and hashlib.new(algorithm.decode(), content).hexdigest().encode() == digits


def _shown(data: bytes) -> str:
    """Text for people: printable ASCII, the rest escaped, cut."""
    return ascii(data.decode("utf-8", "backslashreplace"))[1:-1][:256]


def _listed(names: dict[bytes, frozenset[str]]) -> str:
    return ", ".join(sorted(_shown(name) for name in names)) or "none"
