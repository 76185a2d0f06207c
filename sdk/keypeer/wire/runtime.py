"""Runtime policies: which files a host may have measured since it booted. A document that officers or tools write."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from keypeer.wire.types import Name

FileDigest = Annotated[
    str,
    Meta(
        pattern=r"^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$(?!\n)",
        description="algorithm:hex; SHA-1 proves nothing any more",
    ),
]
# The path as IMA prints it: absolute, an underscore for each space.
MeasuredPath = Annotated[str, Meta(pattern=r"^/[^ \n\x00]*$", max_length=4096)]
Glob = Annotated[str, Meta(pattern=r"^/[^ \n\x00]*$", max_length=4096, description="/a/b, /a/*/c or /a/**")]
FileDigests = dict[MeasuredPath, Annotated[tuple[FileDigest, ...], Meta(min_length=1, max_length=64)]]


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base: unknown keys are errors."""


class SignerKey(Document, frozen=True, kw_only=True):
    """Files signed by this key (PEM, RSA or EC) are allowed, whatever their digest, under ``paths``."""

    name: Name
    pem: Annotated[str, Meta(max_length=16384)]
    paths: tuple[Glob, ...] = ("/**",)


class Requirement(Document, frozen=True, kw_only=True):
    """``path`` must have been measured since boot, with a digest that the set ``of`` has for it."""

    path: MeasuredPath
    of: Name


class RuntimePolicy(Document, frozen=True, kw_only=True):
    """``sets``: name → path → digests, such as a distribution's packages; ``keys``: signers of files; ``excludes``:
    paths that may hold anything; ``buffers``: measured buffers (keyrings, kernel command lines of kexec) by name →
    SHA-256 of the content, none for any content; ``require``: what must run here. ``sha1_boot_aggregate`` accepts
    kernels before 5.8, whose tie between list and boot is made of SHA-1 PCRs, which no quote here shows."""

    sets: dict[Name, FileDigests] = {}
    keys: Annotated[tuple[SignerKey, ...], Meta(max_length=64)] = ()
    excludes: Annotated[tuple[Glob, ...], Meta(max_length=1024)] = ()
    buffers: dict[str, tuple[FileDigest, ...]] = {}
    require: Annotated[tuple[Requirement, ...], Meta(max_length=64)] = ()
    sha1_boot_aggregate: bool = False
