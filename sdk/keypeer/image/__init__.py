"""Memory images: what a VM's RAM holds, outside DRAM. See deploy/image.md for the format, byte by byte."""

from keypeer.image.errors import ImageError
from keypeer.image.format import Header, ImageInfo, read_header
from keypeer.image.reader import ImageReader, decrypt
from keypeer.image.writer import Written, encrypt
from keypeer.image.xts import XtsReader, decrypt_xts, encrypt_xts

__all__ = [
    "Header",
    "ImageError",
    "ImageInfo",
    "ImageReader",
    "Written",
    "XtsReader",
    "decrypt",
    "decrypt_xts",
    "encrypt",
    "encrypt_xts",
    "read_header",
]
