"""A strict reader of TPM 2.0 structures: big-endian, bounded, and every byte accounted for.

tpm2-tss reads on past trailing bytes and leaves sizes to its buffers; a verifier may not.
"""

from __future__ import annotations

from struct import Struct

from kms.errors import EvidenceError


def malformed(where: str, problem: str) -> EvidenceError:
    """The error for bytes that are not the structure they should be; ``where`` is structure and field."""
    return EvidenceError(
        "evidence.malformed",
        f"{where}: {problem}",
        hint="send the structure exactly as the TPM returned it, without padding",
    )


class Reader:
    """Reads ``data`` from its start; ``structure`` is the TCG's name of it, for messages.

    Every method raises EvidenceError ``evidence.malformed`` naming structure and field.
    """

    __slots__ = ("_at", "_data", "_structure")

    def __init__(self, data: bytes, structure: str) -> None:
        self._data = data
        self._at = 0
        self._structure = structure

    def u8(self, field: str) -> int:
        return self.take(1, field)[0]

    def u16(self, field: str) -> int:
        # Here and in ``sized`` without ``take``: an evidence check reads some 30 of these.
        at, data = self._at, self._data
        if at + 2 > len(data):
            raise self._short(2, at, field)
        self._at = at + 2
        return data[at] << 8 | data[at + 1]

    def u32(self, field: str) -> int:
        return int.from_bytes(self.take(4, field), "big")

    def unpack(self, layout: Struct, field: str) -> tuple[int, ...]:
        """Neighbouring integers at once; ``layout`` is big-endian."""
        values: tuple[int, ...] = layout.unpack(self.take(layout.size, field))
        return values

    def take(self, size: int, field: str) -> bytes:
        """The next ``size`` bytes."""
        start, end = self._at, self._at + size
        if end > len(self._data):
            raise self._short(size, start, field)
        self._at = end
        return self._data[start:end]

    def sized(self, most: int, field: str) -> bytes:
        """The contents of a TPM2B: u16 size, then at most ``most`` bytes."""
        at, data = self._at, self._data
        start = at + 2
        if start > len(data):
            raise self._short(2, at, field)
        size = data[at] << 8 | data[at + 1]
        if size > most:
            raise self.error(field, f"has {size} bytes, at most {most} are allowed")
        end = start + size
        if end > len(data):
            raise self._short(size, start, field)
        self._at = end
        return data[start:end]

    def finish(self) -> None:
        """Refuses bytes that nothing has read."""
        left = len(self._data) - self._at
        if left:
            raise self.error("end", f"{left} bytes follow the structure")

    def _short(self, size: int, start: int, field: str) -> EvidenceError:
        return self.error(field, f"wants {size} bytes, {len(self._data) - start} are left")

    def error(self, field: str, problem: str) -> EvidenceError:
        """The error for a field whose value the structure doesn't allow."""
        return malformed(f"{self._structure}.{field}", problem)


def unwrap(data: bytes, most: int, structure: str) -> bytes:
    """The contents of a TPM2B that stands alone."""
    reader = Reader(data, structure)
    contents = reader.sized(most, "size")
    reader.finish()
    return contents
