"""Entries of a measurement list, from either form in which Linux prints it, with the bytes that their hashes are of.

Linux Documentation/security/IMA-templates.rst; formats in security/integrity/ima/ima_fs.c and ima_template_lib.c. A
template's hash is made of its fields, each behind its u32 little-endian length; the first template, ``ima``, has no
lengths and a name padded to 256 bytes.
"""

from __future__ import annotations

import gc
from binascii import Error as HexError
from binascii import hexlify, unhexlify
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import Struct
from typing import NamedTuple

from kms import limits
from kms.evidence.boot.reader import LittleReader
from kms.tpm.reader import malformed

VIOLATION = bytes(20)  # the template hash of an entry that stands for a violation
_WHERE = "IMA list"
_U32 = Struct("<I")
_PCR = b"10"
_LEGACY_NAME_BYTES = 256  # IMA_EVENT_NAME_LEN_MAX + 1
_SHA256_FIELD = _U32.pack(8 + 32) + b"sha256:\0"
_SHA256_HEX_END = len(b"sha256:") + 64

# The fields of each template: "d" digest, "n" name, "s" text, "x" hex, "4" and "2" numbers of so many bytes.
TEMPLATES = {
    b"ima-ng": "dn",
    b"ima-ngv2": "dn",
    b"ima-sig": "dnx",
    b"ima-sigv2": "dnx",
    b"ima-buf": "dnx",
    b"ima-modsig": "dnxdx",
    b"evm-sig": "dnxsxx442",
}
_TYPED = frozenset((b"ima-ngv2", b"ima-sigv2"))


class Entry(NamedTuple):
    """``claim`` is ``algorithm:hex path`` of a file's digest, ``verity:algorithm:hex path`` of its fs-verity digest;
    ``hashed`` what the template hash is made of; ``extra`` the third field: a signature or a buffer."""

    template_hash: bytes
    hashed: bytes
    claim: bytes
    template: bytes
    extra: bytes


@contextmanager
def _collected_later() -> Iterator[None]:
    """Without the garbage collector's walks: a parse makes a hundred thousand objects, and all of them stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collected_later()
def parse_ascii(text: bytes) -> list[Entry]:
    """``ascii_runtime_measurements``: whole lines. EvidenceError for anything else."""
    _check_size(text)
    if text and not text.endswith(b"\n"):
        raise malformed(_WHERE, "the last line has no end")
    if b"\0" in text:
        raise malformed(_WHERE, "a line holds a NUL, which ends what Linux prints")
    lines = text.split(b"\n")
    lines.pop()
    if len(lines) > limits.IMA_ENTRIES_MAX:
        raise malformed(_WHERE, f"has more than {limits.IMA_ENTRIES_MAX} entries")
    entries = []
    pack, unhex = _U32.pack, unhexlify
    try:
        for line in lines:
            pcr, digest, template, rest = line.split(b" ", 3)
            if pcr != _PCR or len(digest) != 40:
                raise malformed(_WHERE, f"a line is of PCR {pcr[:8]!r} with a hash of {len(digest)} digits")
            # One line in a thousand is anything but this: the digest of a file and its name.
            if (
                template == b"ima-ng"
                and rest.startswith(b"sha256:")
                and rest[_SHA256_HEX_END : _SHA256_HEX_END + 1] == b" "
            ):
                name = rest[_SHA256_HEX_END + 1 :]
                hashed = b"".join((_SHA256_FIELD, unhex(rest[7:_SHA256_HEX_END]), pack(len(name) + 1), name, b"\0"))
                entries.append(Entry(unhex(digest), hashed, rest, template, b""))
            else:
                entries.append(_from_text(unhex(digest), template, rest))
    except (ValueError, HexError):
        raise malformed(_WHERE, f"line {len(entries) + 1} isn't one of a measurement list") from None
    return entries


@_collected_later()
def parse_binary(data: bytes) -> list[Entry]:
    """``binary_runtime_measurements``, little-endian: whole entries. EvidenceError for anything else."""
    _check_size(data)
    reader = LittleReader(data, _WHERE)
    entries: list[Entry] = []
    while reader.left:
        if len(entries) >= limits.IMA_ENTRIES_MAX:
            raise malformed(_WHERE, f"has more than {limits.IMA_ENTRIES_MAX} entries")
        pcr = reader.u32("pcr")
        if pcr != int(_PCR):
            raise malformed(_WHERE, f"entry {len(entries) + 1} is of PCR {pcr}")
        digest = reader.take(20, "template hash")
        template = reader.counted(reader.u32("template name length"), limits.IMA_TEMPLATE_NAME_BYTES_MAX, "template")
        if template == b"ima":
            file_digest = reader.take(20, "digest")
            name = reader.counted(reader.u32("name length"), _LEGACY_NAME_BYTES - 1, "name")
            # The name is printed by its strlen. With NULs, another template's lengths could pass for a part of it, and
            # an entry of that template for one of this: their hashes are of the same bytes.
            if b"\0" in name or b"\n" in name:
                raise malformed(_WHERE, "an entry of template ima whose name holds a NUL or a line end")
            entries.append(_legacy(digest, file_digest, name))
        else:
            fields = reader.counted(reader.u32("template data length"), limits.IMA_ENTRY_BYTES_MAX, "template data")
            entries.append(_from_fields(digest, template, fields))
    return entries


def _check_size(data: bytes) -> None:
    if len(data) > limits.IMA_INCREMENT_BYTES_MAX:
        raise malformed(_WHERE, f"has {len(data)} bytes, at most {limits.IMA_INCREMENT_BYTES_MAX} may come at a time")


def _legacy(template_hash: bytes, digest: bytes, name: bytes) -> Entry:
    claim = b"sha1:" + hexlify(digest) + b" " + name
    return Entry(template_hash, digest + name.ljust(_LEGACY_NAME_BYTES, b"\0"), claim, b"ima", b"")


def _plain(template: bytes, digest: bytes) -> bytes:
    # The v2 templates say which digest it is: ``ima:`` is the file's own, as the others have it without saying so.
    return digest.removeprefix(b"ima:") if template in _TYPED else digest


# ── text ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _from_text(template_hash: bytes, template: bytes, rest: bytes) -> Entry:
    if template == b"ima":
        digest, name = rest.split(b" ", 1)
        if len(digest) != 40 or len(name) >= _LEGACY_NAME_BYTES:
            raise malformed(_WHERE, "an entry of template ima with a digest or name too long")
        return _legacy(template_hash, unhexlify(digest), name)
    kinds = TEMPLATES.get(template)
    if kinds is None:
        raise malformed(_WHERE, f"an entry of template {template[:32]!r}, which isn't known")
    # Linux writes underscores for spaces in names, so fields hold none; the last field may in older kernels' lists.
    texts = rest.split(b" ", 1) if kinds == "dn" else rest.split(b" ")
    if len(texts) != len(kinds):
        raise malformed(_WHERE, f"an entry of template {template.decode()} with {len(texts)} fields")
    data = [_TO_DATA[kind](text) for kind, text in zip(kinds, texts, strict=True)]
    hashed = b"".join(_U32.pack(len(field)) + field for field in data)
    claim = _plain(template, texts[0]) + b" " + texts[1]
    return Entry(template_hash, hashed, claim, template, data[2] if len(data) > 2 else b"")


def _digest_data(text: bytes) -> bytes:
    if not text:
        return b""
    algorithm, _, digits = text.rpartition(b":")
    if not algorithm:
        raise malformed(_WHERE, "a digest without an algorithm")
    return algorithm + b":\0" + unhexlify(digits)


def _number_data(size: int) -> Callable[[bytes], bytes]:
    def data(text: bytes) -> bytes:
        if not (text.isdigit() and len(text) <= 10 and int(text) < 1 << 8 * size):
            raise malformed(_WHERE, f"{text[:16]!r} is no number of {size} bytes")
        return int(text).to_bytes(size, "little")

    return data


_TO_DATA: dict[str, Callable[[bytes], bytes]] = {
    "d": _digest_data,
    "n": lambda text: text + b"\0",
    "s": lambda text: text + b"\0",
    "x": unhexlify,
    "4": _number_data(4),
    "2": _number_data(2),
}


# ── binary ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _from_fields(template_hash: bytes, template: bytes, data: bytes) -> Entry:
    kinds = TEMPLATES.get(template)
    if kinds is None:
        raise malformed(_WHERE, f"an entry of template {template[:32]!r}, which isn't known")
    reader = LittleReader(data, _WHERE)
    fields = [reader.counted(reader.u32("field length"), limits.IMA_ENTRY_BYTES_MAX, "field") for _ in kinds]
    reader.finish()
    algorithm, mark, digest = fields[0].partition(b":\0")
    name = fields[1]
    if not mark or not name.endswith(b"\0") or b"\0" in name[:-1] or b"\n" in name:
        raise malformed(_WHERE, "an entry whose digest or name isn't formed as templates are")
    claim = _plain(template, algorithm + b":" + hexlify(digest)) + b" " + name[:-1]
    return Entry(template_hash, data, claim, template, fields[2] if len(fields) > 2 else b"")
