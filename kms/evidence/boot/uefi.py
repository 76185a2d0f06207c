"""UEFI structures inside events: variables, signature lists, image loads and partition tables.

All from UEFI 2.10 and PFP §10.2; bounded, without recursion, every byte consumed. GUIDs are kept as their 16 bytes.
"""

from __future__ import annotations

import uuid
import warnings
from struct import Struct
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

from kms import limits
from kms.evidence.boot.reader import LittleReader
from kms.tpm.reader import malformed


def _guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


EFI_GLOBAL_VARIABLE: Final = _guid("8be4df61-93ca-11d2-aa0d-00e098032b8c")  # UEFI §3.3
IMAGE_SECURITY_DATABASE: Final = _guid("d719b2cb-3d3a-4596-a3bc-dad00e67656f")  # UEFI §32.4.1
SHIM_LOCK: Final = _guid("605dab50-e046-4300-abb6-3dd810dd8b23")  # shim's own variables

_CERT_X509: Final = _guid("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_HASH_SIZES: Final = {  # EFI_CERT_*_GUID of UEFI §32.4.1: what an entry holds after its owner, bytes
    _guid("826ca512-cf10-4ac9-b187-be01496631bd"): 20,  # SHA-1
    _guid("0b6e5233-a65c-44c9-9407-d9ab83bfc8bd"): 28,  # SHA-224
    _guid("c1c41626-504c-4092-aca9-41f936934328"): 32,  # SHA-256
    _guid("ff3e5307-9fd0-48c9-85f1-8ad56c701e01"): 48,  # SHA-384
    _guid("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a"): 64,  # SHA-512
    _guid("3bd2a492-96c0-4079-b420-fcf98ef103ed"): 48,  # a certificate's SHA-256, and when it was revoked
    _guid("7076876e-80c2-4ee6-aad2-28b349a6865b"): 64,  # the same with SHA-384
    _guid("446dbf63-2502-4cda-bcfa-2465d2b0fe9d"): 80,  # the same with SHA-512
}
_OWNER_BYTES: Final = 16

_VARIABLE_HEAD = Struct("<16sQQ")  # VariableName, UnicodeNameLength, VariableDataLength
_LIST_HEAD = Struct("<16sIII")  # SignatureType, SignatureListSize, SignatureHeaderSize, SignatureSize
_IMAGE_HEAD = Struct("<QQQQ")  # location, length, link-time address, LengthOfDevicePath
_SHIM_PADDING = 8  # bytes; shim counts the C structure's empty array of paths to the event
_NODE_HEAD = Struct("<BBH")  # type, subtype, length (UEFI §10.3.1)
_GPT_HEAD = Struct("<8sIIIIQQQQ16sQIII")  # EFI_PARTITION_TABLE_HEADER, UEFI §5.3.2
_PARTITION = Struct("<16s16sQQQ72s")  # EFI_PARTITION_ENTRY, UEFI §5.3.3

_MEDIA_PATH, _MEDIA_FILE, _MEDIA_PIWG_FILE, _MEDIA_PIWG_VOLUME = 4, 4, 6, 7
_END_PATH, _END_INSTANCE, _END_ENTIRE = 0x7F, 0x01, 0xFF


class Variable(NamedTuple):
    """UEFI_VARIABLE_DATA, PFP §10.2.6."""

    guid: bytes
    name: str
    data: bytes


class Signatures(NamedTuple):
    """What a variable of EFI_SIGNATURE_LISTs holds: certificates (DER), and how many entries of all kinds."""

    certificates: tuple[bytes, ...]
    entries: int


class Partitions(NamedTuple):
    """UEFI_GPT_DATA, PFP §10.2.5: the disk's GUID and each partition's type GUID and name."""

    disk: bytes
    partitions: tuple[tuple[bytes, str], ...]


def parse_variable(data: bytes) -> Variable:
    """An EV_EFI_VARIABLE_* event's data."""
    reader = LittleReader(data, "UEFI_VARIABLE_DATA")
    guid, name_chars, size = _VARIABLE_HEAD.unpack(reader.take(_VARIABLE_HEAD.size, "header"))
    if name_chars > limits.BOOT_NAME_CHARS_MAX:
        raise reader.error("UnicodeNameLength", f"is {name_chars}, at most {limits.BOOT_NAME_CHARS_MAX} are allowed")
    name = utf16(reader.take(name_chars * 2, "UnicodeName"), "UEFI_VARIABLE_DATA.UnicodeName")
    contents = reader.counted(size, limits.BOOT_EVENT_BYTES_MAX, "VariableData")
    reader.finish()
    return Variable(guid, name, contents)


def parse_signatures(data: bytes) -> Signatures:
    """PK, KEK, db or dbx: EFI_SIGNATURE_LISTs to the last byte; an empty variable has none."""
    reader = LittleReader(data, "EFI_SIGNATURE_LIST")
    certificates: list[bytes] = []
    lists = entries = 0
    while reader.left:
        lists += 1
        if lists > limits.BOOT_SIGNATURE_LISTS_MAX:
            raise reader.error("count", f"is over {limits.BOOT_SIGNATURE_LISTS_MAX}")
        kind, list_size, header_size, entry_size = _LIST_HEAD.unpack(reader.take(_LIST_HEAD.size, "header"))
        body = list_size - _LIST_HEAD.size - header_size
        if entry_size <= _OWNER_BYTES or body < 0 or body % entry_size:
            raise reader.error("SignatureListSize", f"is {list_size} for entries of {entry_size} bytes")
        if kind in _HASH_SIZES and entry_size != _OWNER_BYTES + _HASH_SIZES[kind]:
            raise reader.error("SignatureSize", f"is {entry_size} for hashes of {_HASH_SIZES[kind]} bytes")
        reader.take(header_size, "SignatureHeader")
        signatures = reader.take(body, "Signatures")
        entries += body // entry_size
        if kind == _CERT_X509:
            if len(certificates) + body // entry_size > limits.BOOT_CERTIFICATES_MAX:
                raise reader.error("Signatures", f"has over {limits.BOOT_CERTIFICATES_MAX} certificates")
            certificates += (signatures[at + _OWNER_BYTES : at + entry_size] for at in range(0, body, entry_size))
    return Signatures(tuple(certificates), entries)


def parse_image_load(data: bytes) -> str:
    """An image load event's device path as far as it names files; "" for an image started from memory."""
    reader = LittleReader(data, "UEFI_IMAGE_LOAD_EVENT")
    *_, size = reader.unpack(_IMAGE_HEAD, "header")
    path = reader.counted(size, limits.BOOT_EVENT_BYTES_MAX, "DevicePath")
    if reader.left == _SHIM_PADDING:
        reader.take(_SHIM_PADDING, "padding")
    reader.finish()
    return _device_path_text(path)


def _device_path_text(path: bytes) -> str:
    """The file names and firmware volumes of EFI_DEVICE_PATH_PROTOCOL nodes (UEFI §10.3); hardware addresses are left
    out, for they differ between equal machines."""
    reader = LittleReader(path, "EFI_DEVICE_PATH")
    parts: list[str] = []
    nodes = 0
    while reader.left:
        nodes += 1
        if nodes > limits.BOOT_PATH_NODES_MAX:
            raise reader.error("nodes", f"are over {limits.BOOT_PATH_NODES_MAX}")
        kind, subtype, size = reader.unpack(_NODE_HEAD, "header")
        if size < _NODE_HEAD.size:
            raise reader.error("Length", f"is {size}, a node has {_NODE_HEAD.size} at least")
        node = reader.take(size - _NODE_HEAD.size, "data")
        if kind == _END_PATH and subtype in {_END_ENTIRE, _END_INSTANCE}:
            continue
        if kind == _MEDIA_PATH and subtype == _MEDIA_FILE:
            parts.append(utf16(node, "EFI_DEVICE_PATH.PathName"))
        elif kind == _MEDIA_PATH and subtype in {_MEDIA_PIWG_FILE, _MEDIA_PIWG_VOLUME} and len(node) == 16:
            parts.append(f"{'Fv' if subtype == _MEDIA_PIWG_VOLUME else 'FvFile'}({uuid.UUID(bytes_le=node)})")
    return printable("/".join(parts))


def parse_gpt(data: bytes) -> Partitions:
    """An EV_EFI_GPT_EVENT's data."""
    reader = LittleReader(data, "UEFI_GPT_DATA")
    head = _GPT_HEAD.unpack(reader.take(_GPT_HEAD.size, "UEFIPartitionHeader"))
    signature, disk, entry_size = head[0], head[9], head[12]
    if signature != b"EFI PART" or entry_size < _PARTITION.size:
        raise reader.error("UEFIPartitionHeader", "is none")
    count = reader.u64("NumberOfPartitions")
    if count > limits.BOOT_GPT_ENTRIES_MAX:
        raise reader.error("NumberOfPartitions", f"is {count}, at most {limits.BOOT_GPT_ENTRIES_MAX} are allowed")
    partitions = []
    for _ in range(count):
        kind, *_, name = _PARTITION.unpack(reader.take(_PARTITION.size, "Partitions"))
        partitions.append((kind, printable(name.decode("utf-16-le", "replace").partition("\0")[0])))
        reader.take(min(entry_size, reader.left + _PARTITION.size) - _PARTITION.size, "Partitions")
    reader.finish()
    return Partitions(disk, tuple(partitions))


def certificate_name(der: bytes) -> str:
    """The subject's common name (or organisation) for people; "" when the bytes are no certificate that we can read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vendors' serial numbers are negative, their versions odd
            subject = x509.load_der_x509_certificate(der).subject
            for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.ORGANIZATION_NAME):
                names = subject.get_attributes_for_oid(oid)
                if names:
                    return printable(str(names[0].value))
    except (ValueError, x509.InvalidVersion):
        return ""
    return ""


def utf16(data: bytes, where: str) -> str:
    """CHAR16 text up to its NUL, if it has one; after it only NULs may come."""
    try:
        text, _, rest = data.decode("utf-16-le").partition("\0")
    except UnicodeDecodeError:
        raise malformed(where, "is not UTF-16") from None
    if rest.strip("\0"):
        raise malformed(where, "goes on after its NUL")
    return text


def printable(text: str, most: int = limits.BOOT_NAME_CHARS_MAX) -> str:
    """``text`` for a terminal: no control characters, not over ``most`` characters. For names that decide nothing."""
    if len(text) > most:
        text = text[: most - 1] + "…"
    return text if text.isprintable() else "".join(each if each.isprintable() else "�" for each in text)


def exact(text: str) -> str:
    """``text`` for a terminal, such that different texts stay different: what is compared must not be cut or merged.

    Control characters become their Unicode pictures (␊ for a line's end), all else unprintable ␛ and its number.
    """
    if text.isprintable() and not any("\u2400" <= each <= "\u243f" for each in text):
        return text
    return "".join(map(_shown, text))


def _shown(char: str) -> str:
    code = ord(char)
    if code < 0x20 and char != "\x1b":
        return chr(0x2400 + code)
    if char.isprintable() and not 0x2400 <= code <= 0x243F:
        return char
    return f"\u241b{code:x};"
