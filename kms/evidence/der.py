"""Strict DER from the not quite strict DER of TPM vendors (X.690 §10, §11).

Some vendors' certificates break single rules of DER and are refused by pyca, though they say one thing only. The copy
made here is for reading. Signatures are verified over the bytes as they were sent, never over this copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kms import limits
from kms.tpm.reader import malformed

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, OID = 0x01, 0x02, 0x03, 0x04, 0x06
UTF8_STRING, PRINTABLE_STRING, SEQUENCE, SET, CONTEXT_0 = 0x0C, 0x13, 0x30, 0x31, 0xA0
_CONSTRUCTED, _LONG_TAG = 0x20, 0x1F
_LENGTH_OCTETS_MAX = 4
_BASIC_CONSTRAINTS = bytes.fromhex("551d13")
_RSAES_OAEP = bytes.fromhex("2a864886f70d010107")  # RFC 4055 §4.1
_RSA_ENCRYPTION = bytes.fromhex("300d06092a864886f70d0101010500")  # AlgorithmIdentifier, RFC 3279 §2.3.1
_PRINTABLE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?")  # X.680 §41.4


class Element(NamedTuple):
    """One tag, length and value; ``raw`` is all three as they were."""

    tag: int
    value: bytes
    raw: bytes


def elements(data: bytes, where: str) -> list[Element]:
    """``data`` as the elements it consists of; every byte is in one. Raises EvidenceError ``evidence.malformed``."""
    found, at = [], 0
    while at < len(data):
        element = _element(data, at, where)
        found.append(element)
        at += len(element.raw)
    return found


def only(data: bytes, tag: int, where: str) -> bytes:
    """The value of the one element that ``data`` is."""
    found = elements(data, where)
    if len(found) != 1 or found[0].tag != tag:
        raise malformed(where, f"isn't one element of tag 0x{tag:02x}")
    return found[0].value


def encoded(tag: int, value: bytes) -> bytes:
    """An element with its length in the shortest form (X.690 §10.1)."""
    size = len(value)
    if size < 0x80:
        return bytes((tag, size)) + value
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + value


def strict(data: bytes, where: str = "certificate") -> bytes:
    """``data`` (one element) with its encoding put right where vendors are known to err, its meaning as it was:

    lengths and integers in their shortest form; TRUE as 0xFF; ``critical`` and ``cA`` left out when they have their
    default, FALSE; the members of a SET in order; a PrintableString with characters that it can't hold as UTF8String;
    an RSA key marked for OAEP alone as an RSA key. What is strict already comes back unchanged.
    """
    found = elements(data, where)
    if len(found) != 1:
        raise malformed(where, f"{len(found)} elements where one is wanted")
    return _strict(found[0], where, limits.DER_DEPTH_MAX)


def _strict(element: Element, where: str, depth: int) -> bytes:
    if not depth:
        raise malformed(where, f"more than {limits.DER_DEPTH_MAX} levels")
    tag, value, _ = element
    if tag & _CONSTRUCTED:
        members = [
            Element(member.tag, b"", _strict(member, where, depth - 1))
            for member in _without_defaults(elements(value, where), where, depth)
        ]
        if tag == SET:
            members.sort(key=lambda member: member.raw)
        return encoded(tag, b"".join(member.raw for member in members))
    if tag == INTEGER:
        return encoded(tag, _shortest(value))
    if tag == BOOLEAN and len(value) == 1:
        return encoded(tag, b"\xff" if value != b"\x00" else value)
    if tag == PRINTABLE_STRING and not _PRINTABLE.issuperset(value) and value.isascii():
        return encoded(UTF8_STRING, value)
    return encoded(tag, value)


def _without_defaults(members: list[Element], where: str, depth: int) -> Sequence[Element]:
    tags = [member.tag for member in members]
    false = [member.tag == BOOLEAN and member.value == b"\x00" for member in members]
    # Extension, RFC 5280 §4.1: OID, critical DEFAULT FALSE, OCTET STRING.
    if tags == [OID, BOOLEAN, OCTET_STRING] and false[1]:
        members, tags = [members[0], members[2]], [OID, OCTET_STRING]
    if tags[:1] == [OID] and tags[-1:] == [OCTET_STRING] and members[0].value == _BASIC_CONSTRAINTS:
        inner = _strict(_element(_basic_constraints(members[-1].value, where), 0, where), where, depth - 1)
        return [*members[:-1], Element(OCTET_STRING, inner, encoded(OCTET_STRING, inner))]
    # SubjectPublicKeyInfo, RFC 5280 §4.1.2.7.
    if tags == [SEQUENCE, BIT_STRING]:
        algorithm = elements(members[0].value, where)
        if algorithm and algorithm[0].tag == OID and algorithm[0].value == _RSAES_OAEP:
            return [_element(_RSA_ENCRYPTION, 0, where), members[1]]
    return members


def _basic_constraints(extension: bytes, where: str) -> bytes:
    members = elements(only(extension, SEQUENCE, where), where)
    if members and members[0].tag == BOOLEAN and members[0].value == b"\x00":
        members = members[1:]
    return encoded(SEQUENCE, b"".join(member.raw for member in members))


def _shortest(value: bytes) -> bytes:
    # X.690 §8.3.2: the first nine bits are neither all zero nor all one.
    while len(value) > 1 and ((value[0] == 0x00 and value[1] < 0x80) or (value[0] == 0xFF and value[1] >= 0x80)):
        value = value[1:]
    return value


def _element(data: bytes, at: int, where: str) -> Element:
    if len(data) - at < 2:
        raise malformed(where, "ends within an element's header")
    tag, first = data[at], data[at + 1]
    if tag & _LONG_TAG == _LONG_TAG:
        raise malformed(where, f"tag 0x{tag:02x} of more than one octet")
    start, size = at + 2, first
    if first & 0x80:
        octets = first & 0x7F
        if not 1 <= octets <= _LENGTH_OCTETS_MAX or start + octets > len(data):
            raise malformed(where, "a length that is indefinite, too long or cut short")
        size = int.from_bytes(data[start : start + octets], "big")
        start += octets
    if start + size > len(data):
        raise malformed(where, f"an element of {size} bytes where {len(data) - start} are left")
    return Element(tag, data[start : start + size], data[at : start + size])
