"""Live migration: encrypted, fenced, one runner at the end of every history."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from keypeer.errors import StateError
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.migrate import FenceUnknown, Incoming, finish, listen, send, take_back
from keypeer.hypervisor.psk import migration_psk
from keypeer.hypervisor.qemu import Qemu
from tests.support.guest import MARKERS, Guest, Guests
from tests.support.relay import relay_to

PSK = os.urandom(32)
MIB = 1024 * 1024


async def yes() -> None:
    """Admitted, or fenced."""


async def no() -> None:
    raise RuntimeError("geo.country: US")


async def unreached() -> None:
    raise AssertionError("nobody asks for this")


@asynccontextmanager
async def slow(source: Guest) -> AsyncIterator[None]:
    """Its migrations take their time: a MiB a second."""
    await source.qemu.qmp.execute("migrate-set-parameters", {"max-bandwidth": MIB})
    yield
    await source.qemu.qmp.execute("migrate-set-parameters", {"max-bandwidth": 1024 * MIB})


async def pair(guests: Guests, key: bytes, disk: Path | None = None) -> tuple[Guest, Guest, Incoming]:
    """A guest that ticks, and a destination that listens."""
    source = await (guests.booted(guests.spec("a", disk=disk), key) if disk else guests.running("a", key))
    destination = await guests.start(guests.spec("b", disk=disk), key, incoming=True)
    return source, destination, await listen(destination.qemu, "127.0.0.1", PSK)


async def test_a_guest_moves_with_disk_and_vtpm(guests: Guests, vm_key: bytes, disk: Path) -> None:
    source, destination, incoming = await pair(guests, vm_key, disk)
    pcr = source.pcr()
    fenced = asyncio.Event()
    statuses: list[str] = []

    async def fence() -> None:
        statuses.extend([await source.qemu.status(), await destination.qemu.status()])
        fenced.set()

    async with relay_to("127.0.0.1", incoming.port) as relay:
        receiving = asyncio.create_task(incoming.receive(fenced.wait))  # type: ignore[arg-type]
        moved = await send(source.qemu, "127.0.0.1", relay.port, PSK, admit=yes, fence=fence)
        await receiving
    last = source.ticks()[-1]
    # The guest stood still on both sides while the fence was asked.
    assert statuses == ["finish-migrate", "inmigrate"]
    assert (await source.qemu.status(), await destination.qemu.status()) == ("postmigrate", "running")
    await destination.until_tick(5)
    assert destination.ticks()[0] in {last, last + 1}
    assert destination.pcr() == pcr
    assert source.ticks()[-1] == last

    assert len(relay.sent) > moved.bytes_sent > MIB
    assert relay.sent.count(guests.marker.encode()) == 0
    print(
        f"downtime {moved.downtime * 1000:.0f} ms, of it at the fence {moved.fence * 1000:.1f} ms; {moved.total:.1f} s"
    )


async def test_a_plain_stream_holds_the_markers(guests: Guests, vm_key: bytes) -> None:
    """The check above can fail."""
    source = await guests.running("a", vm_key)
    destination = await guests.start(guests.spec("b"), vm_key, incoming=True)
    await destination.qemu.qmp.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
    (address,) = (await destination.qemu.qmp.execute("query-migrate"))["socket-address"]
    async with relay_to("127.0.0.1", int(address["port"])) as relay:
        on = {"capability": "events", "state": True}
        await source.qemu.qmp.execute("migrate-set-capabilities", {"capabilities": [on]})
        with source.qemu.qmp.events("MIGRATION") as events:
            await source.qemu.qmp.execute("migrate", {"uri": f"tcp:127.0.0.1:{relay.port}"})
            while (await events.next())["data"]["status"] != "completed":
                pass
    assert relay.sent.count(guests.marker.encode()) >= MARKERS


async def refused_at_admission(source: Guest, incoming: Incoming) -> str:
    async with relay_to("127.0.0.1", incoming.port) as relay:
        with pytest.raises(HypervisorError, match=r"geo\.country") as refused:
            await send(source.qemu, "127.0.0.1", relay.port, PSK, admit=no, fence=unreached)
        assert (relay.connections, relay.sent) == (0, b"")
    return refused.value.code


async def refused_at_the_fence(source: Guest, incoming: Incoming) -> str:
    with pytest.raises(HypervisorError, match=r"geo\.country") as refused:
        await send(source.qemu, "127.0.0.1", incoming.port, PSK, admit=yes, fence=no)
    return refused.value.code


async def unknown(source: Guest, incoming: Incoming) -> str:
    async def fence() -> None:
        raise FenceUnknown("the service doesn't answer")

    with pytest.raises(HypervisorError, match="doesn't answer") as refused:
        await send(source.qemu, "127.0.0.1", incoming.port, PSK, admit=yes, fence=fence)
    assert await source.qemu.status() == "finish-migrate"
    return refused.value.code


async def unknown_and_taken_back(source: Guest, incoming: Incoming) -> str:
    code = await unknown(source, incoming)
    await take_back(source.qemu)
    return code


async def another_psk(source: Guest, incoming: Incoming) -> str:
    async with relay_to("127.0.0.1", incoming.port) as relay:
        with pytest.raises(HypervisorError) as refused:
            await send(source.qemu, "127.0.0.1", relay.port, os.urandom(32), admit=yes, fence=unreached)
        assert len(relay.sent) < 4096, "a handshake, no guest"
    return refused.value.code


async def nobody_there(source: Guest, incoming: Incoming) -> str:
    await incoming.destination.stop()
    with pytest.raises(HypervisorError) as refused:
        await send(source.qemu, "127.0.0.1", incoming.port, PSK, admit=yes, fence=unreached)
    return refused.value.code


async def cut_on_the_way(source: Guest, incoming: Incoming) -> str:
    async with slow(source), relay_to("127.0.0.1", incoming.port) as relay:
        sending = asyncio.create_task(send(source.qemu, "127.0.0.1", relay.port, PSK, admit=yes, fence=unreached))
        await relay.until(MIB // 4)
        relay.cut()
        with pytest.raises(HypervisorError) as refused:
            await sending
    return refused.value.code


async def called_off(source: Guest, incoming: Incoming) -> str:
    async with slow(source), relay_to("127.0.0.1", incoming.port) as relay:
        sending = asyncio.create_task(send(source.qemu, "127.0.0.1", relay.port, PSK, admit=yes, fence=unreached))
        await relay.until(MIB // 4)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    return "cancelled"


async def test_before_the_fence_the_vm_goes_on_at_the_source(guests: Guests, vm_key: bytes) -> None:
    source = await guests.running("a", vm_key)
    with pytest.raises(HypervisorError, match=r"migration\.not_fenced: .* none"):
        await finish(source.qemu)
    await take_back(source.qemu)
    cases = (
        (refused_at_admission, "migration.refused"),
        (refused_at_the_fence, "migration.refused"),
        (unknown_and_taken_back, "migration.fence_unknown"),
        (another_psk, "migration.failed"),
        (nobody_there, "migration.failed"),
        (cut_on_the_way, "migration.failed"),
        (called_off, "cancelled"),
    )
    for number, (case, code) in enumerate(cases):
        destination = await guests.start(guests.spec(f"b{number}"), vm_key, incoming=True)
        incoming = await listen(destination.qemu, "127.0.0.1", PSK)
        receiving = asyncio.create_task(incoming.receive(unreached))
        assert await case(source, incoming) == code, case.__name__
        assert await source.qemu.status() == "running", case.__name__
        await source.until_tick(2)
        assert destination.said() == "", case.__name__
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        assert await destination.is_gone(), case.__name__
    # None of it keeps a good one from working.
    destination = await guests.start(guests.spec("b"), vm_key, incoming=True)
    incoming = await listen(destination.qemu, "127.0.0.1", PSK)
    await asyncio.gather(
        send(source.qemu, "127.0.0.1", incoming.port, PSK, admit=yes, fence=yes), incoming.receive(yes)
    )
    await destination.until_tick()
    assert await source.qemu.status() == "postmigrate"


async def test_another_agent_finishes_what_one_left_in_the_fence(guests: Guests, vm_key: bytes) -> None:
    source, destination, incoming = await pair(guests, vm_key)
    receiving = asyncio.create_task(incoming.receive(yes))
    assert await unknown(source, incoming) == "migration.fence_unknown"
    await source.qemu.detach()
    found = await Qemu.attach(source.spec)
    moved = await finish(found)
    await receiving
    await destination.until_tick()
    assert (await found.status(), moved.fence) == ("postmigrate", 0.0)
    # Asked again, it says the same.
    assert await finish(found) == moved
    await found.stop()


async def test_what_a_killed_agent_left_is_in_nobodys_way(guests: Guests, vm_key: bytes) -> None:
    source, destination, incoming = await pair(guests, vm_key)
    await migration_psk(source.qemu, os.urandom(32), "client").__aenter__()
    await asyncio.gather(
        send(source.qemu, "127.0.0.1", incoming.port, PSK, admit=yes, fence=yes), incoming.receive(yes)
    )
    await destination.until_tick()
    assert not (source.spec.folder / "psk").exists()


async def test_the_source_dies_after_the_fence(guests: Guests, vm_key: bytes) -> None:
    source, destination, incoming = await pair(guests, vm_key)

    async def fence() -> None:
        source.kill()

    sent, received = await asyncio.gather(
        send(source.qemu, "127.0.0.1", incoming.port, PSK, admit=yes, fence=fence),
        incoming.receive(unreached),
        return_exceptions=True,
    )
    assert isinstance(sent, HypervisorError)
    assert isinstance(received, HypervisorError)
    assert (sent.code, received.code) == ("migration.source_gone", "migration.source_gone")
    # The memory died with the source: nowhere, and not in two places.
    assert await destination.is_gone()
    assert destination.said() == ""


async def test_the_source_dies_when_all_is_sent(guests: Guests, vm_key: bytes) -> None:
    source, destination, incoming = await pair(guests, vm_key)

    async def go() -> None:
        await sending
        source.kill()

    sending = asyncio.create_task(send(source.qemu, "127.0.0.1", incoming.port, PSK, admit=yes, fence=yes))
    await incoming.receive(go)
    await destination.until_tick(3)
    assert await source.is_gone()


async def test_the_destination_dies_after_the_fence(guests: Guests, vm_key: bytes) -> None:
    source = await guests.running("a", vm_key)
    # QEMU lets the VM run again a little after it told that it failed: each time it must end up stopped.
    for number in range(4):
        destination = await guests.start(guests.spec(f"b{number}"), vm_key, incoming=True)
        incoming = await listen(destination.qemu, "127.0.0.1", PSK)
        receiving = asyncio.create_task(incoming.receive(unreached))

        async def fence(dying: Guest = destination) -> None:
            dying.kill()

        with pytest.raises(HypervisorError) as lost:
            await send(source.qemu, "127.0.0.1", incoming.port, PSK, admit=yes, fence=fence)
        assert lost.value.code == "migration.lost"
        with pytest.raises(HypervisorError, match=r"migration\.source_gone"):
            await receiving
        assert await source.qemu.status() == "paused"
        # The owner is this host again.
        await source.qemu.resume()
        await source.until_tick(2)


async def test_the_destination_may_not_run_it_after_all(guests: Guests, vm_key: bytes) -> None:
    source, destination, incoming = await pair(guests, vm_key)
    receiving = asyncio.create_task(incoming.receive(no))
    await send(source.qemu, "127.0.0.1", incoming.port, PSK, admit=yes, fence=yes)
    with pytest.raises(HypervisorError, match=r"geo\.country") as refused:
        await receiving
    assert refused.value.code == "migration.refused"
    assert await destination.is_gone()
    assert destination.said() == ""
    assert await source.qemu.status() == "postmigrate"
    await source.qemu.resume()
    await source.until_tick(2)


async def test_a_destination_with_another_vms_key_gets_no_vtpm(guests: Guests, vm_key: bytes) -> None:
    source = await guests.running("a", vm_key)
    destination = await guests.start(guests.spec("b"), os.urandom(64), incoming=True)
    incoming = await listen(destination.qemu, "127.0.0.1", PSK)
    receiving = asyncio.create_task(incoming.receive(unreached))
    with pytest.raises(HypervisorError) as lost:
        await send(source.qemu, "127.0.0.1", incoming.port, PSK, admit=yes, fence=yes)
    assert lost.value.code == "migration.lost"
    with pytest.raises(HypervisorError, match="tpm"):
        await receiving
    assert await source.qemu.status() == "paused"


@pytest.mark.parametrize("psk", [b"", bytes(31), bytes(65)])
async def test_a_psk_of_another_size_is_refused(guests: Guests, vm_key: bytes, psk: bytes) -> None:
    waiting = await guests.start(guests.spec("b", vtpm=False), vm_key, incoming=True)
    with pytest.raises(StateError) as refused:
        await listen(waiting.qemu, "127.0.0.1", psk)
    assert refused.value.code == "migration.psk"
    assert not (waiting.spec.folder / "psk").exists()
