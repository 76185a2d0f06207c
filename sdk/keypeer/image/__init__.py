"""Memory images: what a VM's RAM holds, outside DRAM. See deploy/image.md for the format, byte by byte."""

from keypeer.image.errors import ImageError
from keypeer.image.format import Header, ImageInfo, read_header
from keypeer.image.reader import ImageReader, decrypt
from keypeer.image.writer import encrypt

__all__ = ["Header", "ImageError", "ImageInfo", "ImageReader", "decrypt", "encrypt", "read_header"]
