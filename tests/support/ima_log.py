"""Well-formed IMA measurement lists of machines that never were, with the extends that belong to them.

log = ImaList().boot_aggregate(pcrs).file("/usr/bin/bash", b"content")
log.ascii(), log.binary()     as the kernel prints them
log.extends("sha256")         what PCR 10 is extended with, in order
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from struct import pack

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

VIOLATION = bytes(20)


@dataclass(frozen=True)
class Line:
    """One entry: its fields as data and as the kernel shows them."""

    template: str
    data: tuple[bytes, ...]
    shown: tuple[str, ...]
    violation: bool = False

    @property
    def hashed(self) -> bytes:
        if self.template == "ima":
            return self.data[0] + self.data[1].ljust(256, b"\0")
        return b"".join(pack("<I", len(field)) + field for field in self.data)

    @property
    def template_hash(self) -> bytes:
        return VIOLATION if self.violation else hashlib.sha1(self.hashed).digest()  # noqa: S324 - as Linux prints it

    def ascii(self) -> bytes:
        return f"10 {self.template_hash.hex()} {self.template} {' '.join(self.shown)}\n".encode()

    def binary(self) -> bytes:
        name = self.template.encode()
        head = pack("<I", 10) + self.template_hash + pack("<I", len(name)) + name
        if self.template == "ima":
            return head + self.data[0] + pack("<I", len(self.data[1])) + self.data[1]
        return head + pack("<I", len(self.hashed)) + self.hashed


class ImaList:
    """A list under construction; adding methods return it. ``lines`` is plain, for tests that tamper with it."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def add(self, line: Line) -> ImaList:
        self.lines.append(line)
        return self

    def boot_aggregate(self, pcrs: Mapping[int, bytes], bank: str = "sha256") -> ImaList:
        """The first entry: the hash over the boot PCRs."""
        digest = hashlib.new(bank, b"".join(pcrs[pcr] for pcr in range(10))).digest()
        return self.add(ng("boot_aggregate", digest, bank))

    def file(self, path: str, content: bytes, algorithm: str = "sha256") -> ImaList:
        return self.add(ng(path, hashlib.new(algorithm, content).digest(), algorithm))

    def signed(
        self, path: str, content: bytes, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, *, version: int = 2
    ) -> ImaList:
        """Template ima-sig (ima-sigv2 for version 3, over an fs-verity digest)."""
        digest = hashlib.sha256(content).digest()
        signature = ima_signature(digest, key, version=version)
        line = ng(path, digest)
        if version == 3:
            data = (b"verity:sha256:\0" + digest, line.data[1], signature)
            shown = (f"verity:sha256:{digest.hex()}", path, signature.hex())
            return self.add(Line("ima-sigv2", data, shown))
        return self.add(Line("ima-sig", (*line.data, signature), (*line.shown, signature.hex())))

    def typed(self, path: str, content: bytes, kind: str = "ima") -> ImaList:
        """Template ima-ngv2: the digest says whether it is the file's or fs-verity's."""
        line = ng(path, hashlib.sha256(content).digest())
        data = (kind.encode() + b":" + line.data[0], line.data[1])
        return self.add(Line("ima-ngv2", data, (f"{kind}:{line.shown[0]}", path)))

    def buffer(self, name: str, content: bytes) -> ImaList:
        """Template ima-buf: a keyring, a kernel command line."""
        line = ng(name, hashlib.sha256(content).digest())
        return self.add(Line("ima-buf", (*line.data, content), (*line.shown, content.hex())))

    def violation(self, path: str) -> ImaList:
        line = ng(path, bytes(32))
        return self.add(Line(line.template, line.data, line.shown, violation=True))

    def legacy(self, path: str, content: bytes) -> ImaList:
        """Template ima, SHA-1."""
        digest = hashlib.sha1(content).digest()  # noqa: S324 - what the template holds
        return self.add(Line("ima", (digest, path.encode()), (digest.hex(), path)))

    def ascii(self) -> bytes:
        return b"".join(line.ascii() for line in self.lines)

    def binary(self) -> bytes:
        return b"".join(line.binary() for line in self.lines)

    def extends(self, bank: str, *, padded: bool = False) -> list[bytes]:
        """What the kernel extends PCR 10 with; ``padded`` as kernels before 5.8 do."""
        size = hashlib.new(bank).digest_size
        return [
            b"\xff" * size
            if line.violation
            else line.template_hash.ljust(size, b"\0")
            if padded
            else hashlib.new(bank, line.hashed).digest()
            for line in self.lines
        ]

    def pcr(self, bank: str, *, padded: bool = False) -> bytes:
        """PCR 10 afterwards."""
        value = bytes(hashlib.new(bank).digest_size)
        for digest in self.extends(bank, padded=padded):
            value = hashlib.new(bank, value + digest).digest()
        return value


def ng(path: str, digest: bytes, algorithm: str = "sha256") -> Line:
    """Template ima-ng."""
    data = (algorithm.encode() + b":\0" + digest, path.encode() + b"\0")
    return Line("ima-ng", data, (f"{algorithm}:{digest.hex()}", path))


def ima_signature(
    digest: bytes, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, *, version: int = 2, kind: int | None = None
) -> bytes:
    """security.ima's contents: signature_v2_hdr and the signature."""
    kind = kind or (6 if version == 3 else 3)
    signed = digest if version == 2 else hashlib.sha256(bytes((kind, 4)) + digest).digest()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(signed, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
    else:
        signature = key.sign(signed, ec.ECDSA(Prehashed(hashes.SHA256())))
    return pack(">BBBIH", kind, version, 4, 0x12345678, len(signature)) + signature
