"""Which of an event's bytes its digest proves: the digest rules of PFP §10.4.1, GRUB, shim and systemd-stub.

A log comes from the host it speaks against. Its digests are proven by the quote; its data only where the digest is
made of that data. Everything else is a claim.
"""

from __future__ import annotations

from typing import Final

from kms.evidence.boot import constants as c
from kms.evidence.boot.parse import Event
from kms.tpm.constants import Hash

# GRUB's grub-core/commands/tpm.c: the digest is of the text behind the prefix. The second spellings are Red Hat's.
COMMAND_PREFIXES: Final = (b"grub_cmd: ", b"grub_cmd ")
KERNEL_PREFIXES: Final = (b"kernel_cmdline: ", b"grub_kernel_cmdline ")
_GRUB_PREFIXES: Final = (*COMMAND_PREFIXES, *KERNEL_PREFIXES, b"module_cmdline: ")


def is_bound(event: Event, bank: Hash) -> bool:
    """Whether the digest is that of all the event's data."""
    return bank.digest(event.data) == event.digests[bank.name]


def bound_grub_text(event: Event, bank: Hash) -> tuple[bytes, bytes] | None:
    """(prefix, text) of a GRUB string whose digest is that of the text, without its NUL (older GRUBs: with it)."""
    prefix = next((each for each in _GRUB_PREFIXES if event.data.startswith(each)), None)
    if prefix is None:
        return None
    text = event.data[len(prefix) :]
    digest = event.digests[bank.name]
    bare = text.rstrip(b"\0")
    if digest in {bank.digest(bare), bank.digest(bare + b"\0")} and b"\0" not in bare:
        return prefix, bare
    return None


def bound_utf16(event: Event, bank: Hash) -> str | None:
    """The UTF-16 text of systemd-boot and systemd-stub, whose digest is of the text with or without its NUL.

    Before version 251 they logged the text with one odd byte behind it.
    """
    data = event.data[: len(event.data) & ~1]
    try:
        text = data.decode("utf-16-le").rstrip("\0")
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    raw = text.encode("utf-16-le")
    digest = event.digests[bank.name]
    return text if digest in {bank.digest(raw + b"\0\0"), bank.digest(raw), bank.digest(event.data)} else None


def claimed_text(event: Event) -> str:
    """What the event's data says, for people only: proven by nothing."""
    if event.type == c.EV_EVENT_TAG and len(event.data) >= 8:
        tag = int.from_bytes(event.data[:4], "little")
        if tag in c.TAG_NAMES:
            return c.TAG_NAMES[tag]
        return _decoded(event.data[8:])
    return _decoded(event.data)


def _decoded(data: bytes) -> str:
    data = data[:1024]
    # ASCII as UTF-16 has a zero in every second byte.
    if len(data) > 2 and not any(data[1:8:2]):
        return data[: len(data) & ~1].decode("utf-16-le", "replace").rstrip("\0")
    return data.rstrip(b"\0").decode("utf-8", "replace")
