"""What a boot log proves about a boot, as frozen records that baselines can keep.

Names say how far a text goes: ``name``, ``text`` and ``version`` are proven by a digest in the quote; whatever is
called ``claimed`` is the host's own word, for people to read, and decides nothing.
"""

from __future__ import annotations

import msgspec


class Fact(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of boot facts. Digests are hex; a field is added at the end of its class, with a default."""


class Measurement(Fact, frozen=True):
    """A digest in the bank's hash, of something that isn't in the log: an image, a file, a firmware volume."""

    digest: str
    claimed: str


class SignatureDatabase(Fact, frozen=True):
    """PK, KEK, db or dbx. ``digest``: SHA-256 of the variable's contents; ``certificates``: their subjects."""

    digest: str
    entries: int
    certificates: tuple[str, ...]


class Authority(Fact, frozen=True):
    """What admitted an image: ``variable`` says whose word it was (db, Shim, MokList, SbatLevel …), ``name`` the
    certificate's subject where it is one. Which image it was is claimed, for PCR 7 doesn't know PCR 4's order."""

    variable: str
    digest: str
    name: str
    claimed_image: str


class OtherVariable(Fact, frozen=True):
    """A further variable or device policy in PCR 7; ``digest`` in the bank's hash."""

    name: str
    digest: str


class SecureBoot(Fact, frozen=True):
    """PCR 7. ``shim_enforces`` is False when shim's own switch (MokSBState) turns validation off."""

    enabled: bool
    pk: SignatureDatabase
    kek: SignatureDatabase
    db: SignatureDatabase
    dbx: SignatureDatabase
    authorities: tuple[Authority, ...] = ()
    others: tuple[OtherVariable, ...] = ()
    shim_enforces: bool = True
    debug_mode: bool = False
    dma_protection: bool = True


class Section(Fact, frozen=True):
    """A section of a unified kernel image that systemd-stub measured, by its proven name."""

    name: str
    digest: str


class Claim(Fact, frozen=True):
    """An event that a digest stands for, but whose text the digest doesn't prove."""

    pcr: int
    event: str
    digest: str
    claimed: str


class BootFacts(Fact, frozen=True):
    """``proven``: the PCRs that the quote shows with the log's value; facts of others are absent.

    ``firmware`` is PCR 0, ``drivers`` PCR 2, ``applications`` PCR 4, ``files`` PCR 9, ``mok`` PCR 14, each in the order
    of measurement; together they are no longer than the log (limits.BOOT_LOG_BYTES_MAX), and nothing of it is cut, or
    a difference could hide behind the cut. ``kernel_command_lines`` come from GRUB, systemd-boot or systemd-stub.
    """

    bank: str
    proven: tuple[int, ...]
    secure_boot: SecureBoot | None = None
    crtm_version: str = ""
    firmware: tuple[Measurement, ...] = ()
    drivers: tuple[Measurement, ...] = ()
    applications: tuple[Measurement, ...] = ()
    partition_tables: tuple[str, ...] = ()
    grub_commands: tuple[str, ...] = ()
    kernel_command_lines: tuple[str, ...] = ()
    files: tuple[Measurement, ...] = ()
    mok: tuple[Measurement, ...] = ()
    uki_sections: tuple[Section, ...] = ()
    exit_boot_services: bool = False
    claims: tuple[Claim, ...] = ()
