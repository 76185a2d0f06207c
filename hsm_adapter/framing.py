"""Frames on the worker's socket: a u32 big-endian length and that many bytes of msgpack (protocol.py says of what)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from hsm_adapter import limits
from hsm_adapter.errors import BadRequest
from hsm_adapter.protocol import U64, Operation, Result

HEADER_BYTES: Final = 4  # u32 big-endian length of what follows


class Request(Struct, frozen=True, array_like=True):
    """What a client sends; ``id`` comes back in the reply."""

    id: U64
    operations: tuple[Operation, ...]


class RawRequest(Struct, frozen=True, array_like=True):
    """A request as the worker reads it: operations are decoded one by one, so a bad one fails alone."""

    id: U64
    operations: Annotated[tuple[msgspec.Raw, ...], Meta(max_length=limits.FRAME_OPERATIONS_MAX)]


class Reply(Struct, frozen=True, array_like=True):
    """One result for each operation of the request ``id``, in its order. ``busy``: seconds that the worker spent on
    them; what the frame waited for others isn't in it."""

    id: U64
    results: tuple[Result, ...]
    busy: float = 0.0


class FrameError(Exception):
    """Bytes that aren't a frame of this protocol; the connection can't be used any more."""


_encoder: Final = msgspec.msgpack.Encoder()
_raw_request: Final = msgspec.msgpack.Decoder(RawRequest)
_operation: Final[msgspec.msgpack.Decoder[Operation]] = msgspec.msgpack.Decoder(Operation)
_reply: Final = msgspec.msgpack.Decoder(Reply)


def encode_frame(message: Request | Reply) -> bytearray:
    """The whole frame, header included. Raises FrameError when it would exceed FRAME_BYTES_MAX."""
    frame = bytearray(HEADER_BYTES)
    _encoder.encode_into(message, frame, HEADER_BYTES)
    size = len(frame) - HEADER_BYTES
    if size > limits.FRAME_BYTES_MAX:
        raise FrameError(f"a frame holds at most {limits.FRAME_BYTES_MAX} bytes, not {size}")
    frame[:HEADER_BYTES] = size.to_bytes(HEADER_BYTES, "big")
    return frame


def encode_request(request_id: int, operations: Sequence[Operation]) -> bytearray:
    """A request's frame; at most FRAME_OPERATIONS_MAX operations."""
    if len(operations) > limits.FRAME_OPERATIONS_MAX:
        raise FrameError(f"a frame holds at most {limits.FRAME_OPERATIONS_MAX} operations, not {len(operations)}")
    return encode_frame(Request(request_id, tuple(operations)))


def payload_size(header: bytes | bytearray) -> int:
    """Bytes that follow this 4-byte header. Raises FrameError on a size that no frame has."""
    size = int.from_bytes(header, "big")
    if not 0 < size <= limits.FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {size} bytes; 1 to {limits.FRAME_BYTES_MAX} are allowed")
    return size


def take_frame(buffer: bytearray) -> bytes | None:
    """Remove the first whole frame from ``buffer`` and return its payload; None while it is incomplete."""
    if len(buffer) < HEADER_BYTES:
        return None
    end = HEADER_BYTES + payload_size(buffer[:HEADER_BYTES])
    if len(buffer) < end:
        return None
    payload = bytes(memoryview(buffer)[HEADER_BYTES:end])
    del buffer[:end]
    return payload


def decode_request(payload: bytes) -> RawRequest:
    """The envelope of a request, operations still raw. Raises FrameError."""
    try:
        return _raw_request.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(f"not a request: {error}") from error


def decode_operation(raw: msgspec.Raw) -> Operation:
    """One operation, its fields checked against their bounds. Raises BadRequest."""
    try:
        return _operation.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(str(error)) from error


def decode_reply(payload: bytes) -> Reply:
    """For the client. Raises FrameError."""
    try:
        return _reply.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameError(f"not a reply: {error}") from error
