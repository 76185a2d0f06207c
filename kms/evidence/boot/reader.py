"""The little-endian side of kms.tpm.reader: event logs and UEFI structures."""

from __future__ import annotations

from struct import Struct

from kms.tpm.reader import Reader

_U16 = Struct("<H")
_U32 = Struct("<I")
_U64 = Struct("<Q")


class LittleReader(Reader):
    """A strict reader of little-endian structures."""

    __slots__ = ()

    def u16(self, field: str) -> int:
        return self.unpack(_U16, field)[0]

    def u32(self, field: str) -> int:
        return self.unpack(_U32, field)[0]

    def u64(self, field: str) -> int:
        return self.unpack(_U64, field)[0]

    def counted(self, size: int, most: int, field: str) -> bytes:
        """``size`` bytes, which must be at most ``most``."""
        if size > most:
            raise self.error(field, f"has {size} bytes, at most {most} are allowed")
        return self.take(size, field)

    @property
    def left(self) -> int:
        """How many bytes nothing has read yet."""
        return len(self._data) - self._at
