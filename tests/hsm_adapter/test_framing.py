"""Frames: round trips, bounds, and a stranger's bytes (hypothesis), on the functions and on a live worker."""

from __future__ import annotations

import struct
from contextlib import suppress

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsm_adapter import framing, limits
from hsm_adapter import protocol as p
from hsm_adapter.errors import BadRequest
from tests.support import hsm

RECORD = p.KeyRecord("vm-1", 1, 64, b"a", 1, 1, bytes(72), bytes(32))
SESSION = p.SessionRecord(bytes(16), "fra-1", b"\x00\x0b", 1, 1, bytes(40), bytes(40), bytes(32))
OPERATIONS: tuple[p.Operation, ...] = (
    p.CreateKey(p.NewKey("vm-1", 0, 32, b"")),
    p.OpenSession(bytes(16), "fra-1", b"\x00\x0b", bytes(256), 65537),
    p.Rewrap(RECORD, SESSION, 2**64 - 1, 0, 2**32 - 1),
    p.Mac(b"data"),
    p.Sign("geo", b"data"),
    p.Random(1),
    p.SelfTest(),
    p.Ping(),
    p.Describe(),
)
RESULTS: tuple[p.Result, ...] = (
    RECORD,
    p.OpenedSession(SESSION, bytes(256), "sha1", bytes(40), bytes(70)),
    p.Released(bytes(72), bytes(32)),
    p.SelfTestResult(True, "", "rfc5649", {1: b"abc"}),
    p.OperationError("hsm.session", "detail", True),
)


def test_requests_and_replies_come_back() -> None:
    buffer = framing.encode_request(7, OPERATIONS) + framing.encode_frame(framing.Reply(7, RESULTS)) + b"\x00"
    request = framing.take_frame(buffer)
    reply = framing.take_frame(buffer)
    assert request is not None
    assert reply is not None
    decoded = framing.decode_request(request)
    assert decoded.id == 7
    assert tuple(framing.decode_operation(raw) for raw in decoded.operations) == OPERATIONS
    assert framing.decode_reply(reply) == framing.Reply(7, RESULTS)
    assert framing.take_frame(buffer) is None
    assert buffer == b"\x00"


def test_the_wire_order_is_the_fields_order() -> None:
    """Written out once: other implementations rely on it."""
    assert msgspec.msgpack.decode(framing.encode_request(1, [p.Rewrap(RECORD, SESSION, 5, 6, 7)])[4:]) == [
        1,
        [
            [
                "Rewrap",
                ["KeyRecord", "vm-1", 1, 64, b"a", 1, 1, bytes(72), bytes(32)],
                [bytes(16), "fra-1", b"\x00\x0b", 1, 1, bytes(40), bytes(40), bytes(32)],
                5,
                6,
                7,
            ]
        ],
    ]


@pytest.mark.parametrize("size", [0, limits.FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_size_no_frame_has_is_refused_at_the_header(size: int) -> None:
    with pytest.raises(framing.FrameError, match="are allowed"):
        framing.take_frame(bytearray(struct.pack(">I", size)))


def test_too_many_operations_are_refused_on_both_ends() -> None:
    pings = [p.Ping()] * (limits.FRAME_OPERATIONS_MAX + 1)
    with pytest.raises(framing.FrameError, match="512 operations"):
        framing.encode_request(1, pings)
    with pytest.raises(framing.FrameError):
        framing.decode_request(msgspec.msgpack.encode([1, pings]))


def test_a_frame_too_large_is_not_sent() -> None:
    with pytest.raises(framing.FrameError, match="holds at most"):
        framing.encode_request(1, [p.Mac(bytes(limits.DATA_BYTES_MAX))] * 100)


BAD_OPERATIONS = {
    "unknown": ["Export", "keypeer/kek/1"],
    "not an array": 5,
    "size": ["CreateKey", ["vm", 1, 48, b""]],
    "no vm": ["CreateKey", ["", 1, 32, b""]],
    "long vm": ["CreateKey", ["v" * 256, 1, 32, b""]],
    "negative version": ["CreateKey", ["vm", -1, 32, b""]],
    "large version": ["CreateKey", ["vm", 2**32, 32, b""]],
    "large attributes": ["CreateKey", ["vm", 1, 32, bytes(4097)]],
    "text for bytes": ["Mac", "text"],
    "short session": ["OpenSession", bytes(15), "h", b"n", bytes(256), 65537],
    "short modulus": ["OpenSession", bytes(16), "h", b"n", bytes(255), 65537],
    "unknown key": ["Sign", "kek", b""],
    "no random": ["Random", 0],
    "much random": ["Random", 4097],
    "much data": ["Mac", bytes(65537)],
    "missing field": ["Rewrap"],
}


@pytest.mark.parametrize("name", BAD_OPERATIONS)
def test_a_bad_operation_is_refused_alone(client: hsm.Client, name: str) -> None:
    payload = msgspec.msgpack.encode([9, [["Mac", b"x"], BAD_OPERATIONS[name], ["Mac", b"x"]]])
    client.sock.sendall(struct.pack(">I", len(payload)) + payload)
    before, error, after = client.receive().results
    assert isinstance(before, p.MacValue)
    assert before == after
    assert isinstance(error, p.OperationError)
    assert (error.code, error.retryable) == ("hsm.bad_request", False)


@given(st.binary(max_size=300))
def test_decoding_raises_only_its_own_errors(data: bytes) -> None:
    decoded: list[p.Operation] = []
    with suppress(framing.FrameError, BadRequest):
        decoded.extend(framing.decode_operation(raw) for raw in framing.decode_request(data).operations)
    assert all(msgspec.msgpack.encode(operation) for operation in decoded)


MSGPACK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=80),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)
TAGS = st.sampled_from(["CreateKey", "OpenSession", "Rewrap", "Mac", "Sign", "Random", "Ping", "SelfTest"])
TAGGED = st.tuples(TAGS, st.lists(MSGPACK, max_size=5)).map(lambda t: [t[0], *t[1]])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda data: struct.pack(">I", len(data)) + data))
def test_a_strangers_bytes_end_his_connection_and_nothing_else(worker: hsm.RunningWorker, data: bytes) -> None:
    with hsm.Client(worker.socket) as stranger, hsm.Client(worker.socket) as neighbour:
        stranger.sock.sendall(data)
        stranger.sock.shutdown(1)  # SHUT_WR
        try:
            while stranger.sock.recv(4096):
                pass
        except ConnectionResetError:
            pass  # closed with our bytes unread
        assert neighbour.one(p.Ping(), p.Pong).healthy
    assert worker.process.poll() is None


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TAGGED | MSGPACK, max_size=5))
def test_every_operation_of_a_good_envelope_is_answered(worker: hsm.RunningWorker, operations: list[object]) -> None:
    with hsm.Client(worker.socket) as stranger:
        payload = msgspec.msgpack.encode([3, operations])
        stranger.sock.sendall(struct.pack(">I", len(payload)) + payload)
        reply = stranger.receive()
    assert reply.id == 3
    assert len(reply.results) == len(operations)


def test_a_frame_may_come_in_pieces_and_many_in_one(client: hsm.Client) -> None:
    frames = bytes(framing.encode_request(1, [p.Ping()]) + framing.encode_request(2, [p.Mac(b"x")]))
    for byte in frames[:-1]:
        client.sock.sendall(bytes([byte]))
    assert client.receive().id == 1
    client.sock.sendall(frames[-1:] + frames)
    assert [client.receive().id for _ in range(3)] == [2, 1, 2]
