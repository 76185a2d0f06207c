"""`keypeer agent`: what a host does."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keypeer.cli import output
from keypeer.cli.calling import exit_code, fail, home_folder, home_option, json_option, run_in_words
from keypeer.errors import KeypeerClientError, StateError
from keypeer.wire.profile import BOOT_PCRS, PCR_BANK

if TYPE_CHECKING:
    from keypeer.agent import HostAgent
    from keypeer.agentd.local import AgentStatus
    from keypeer.state import AgentState
    from keypeer.vmkey import VmKey
    from keypeer.wire.messages import AttestResult

_folder_option = click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), default=None, help="The agent's folder."
)
_host_option = click.option("--host", default=None, help="Which agent of HOME/agents; the only one unless told.")
_PAGE_BYTES = 4096  # bytes; what the trial encrypts


@click.group()
def agent() -> None:
    """This host: enrol, attest, fetch keys."""


def state_of(home: Path | None, folder: Path | None, host: str | None) -> AgentState:
    """The agent that the options name. Raises StateError ``state.missing``."""
    from keypeer.state import AgentState

    if folder is not None:
        return AgentState.open(folder)
    agents = home_folder(home) / "agents"
    if host is not None:
        return AgentState.open(agents / host)
    found = [path.parent for path in agents.glob("*/agent.toml")]
    if len(found) != 1:
        what = "more than one agent" if found else "no agent"
        raise StateError("state.missing", f"{agents} holds {what}", "name one with --host or --folder; or enrol one")
    return AgentState.open(found[0])


def _run(
    home: Path | None,
    folder: Path | None,
    host: str | None,
    as_json: bool,
    work: Callable[[HostAgent], Awaitable[int | None]],
) -> None:
    """Opens the agent and runs ``work`` with it."""

    async def call() -> int | None:
        from keypeer.agent import HostAgent

        async with HostAgent(state_of(home, folder, host)) as opened:
            return await work(opened)

    run_in_words(call, as_json=as_json)


@agent.command()
@click.option("--server", required=True, help="The service's URL, https://…")
@click.option("--ca", required=True, type=click.Path(path_type=Path), help="PEM of the service's CA.")
@click.option("--host", required=True, help="This host's name.")
@click.option("--tcti", default="device:/dev/tpmrm0", show_default=True, help="How to reach the TPM.")
@click.option("--boot-log", default=None, help="The firmware's event log, '' for none; the kernel's unless told.")
@click.option("--ima-log", default=None, help="Linux' IMA list (ASCII), '' for none; the kernel's unless told.")
@_folder_option
@home_option
@json_option
def enrol(
    server: str,
    ca: Path,
    host: str,
    tcti: str,
    boot_log: str | None,
    ima_log: str | None,
    folder: Path | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Prove this host's TPM to the service and get a certificate."""
    from keypeer.state import AgentState

    try:
        state = AgentState.create(
            folder or home_folder(home) / "agents" / host,
            server=server,
            host=host,
            ca=_read(ca),
            tcti=tcti,
            boot_log=boot_log,
            ima_log=ima_log,
        )
    except KeypeerClientError as error:
        fail(error, as_json=as_json)

    async def work() -> None:
        from keypeer.agent import HostAgent

        async with HostAgent(state) as opened:
            result = await opened.enrol()
        if as_json:
            output.as_json({"host": result.host, "status": result.status, "ek_digest": result.ek_digest})
            return
        output.done(f"host {result.host} is enrolled: {result.status}, EK {result.ek_digest}")
        if result.status == "pending":
            output.say(f"an officer compares the EK and runs: keypeer host approve {result.host}")

    run_in_words(work, as_json=as_json)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError("input.missing", f"{path}: {error.strerror}") from None


@agent.command()
@click.option("--watch", type=click.IntRange(1, 86_400), default=None, help="Attest again every so many seconds.")
@_folder_option
@_host_option
@home_option
@json_option
def attest(watch: int | None, folder: Path | None, host: str | None, home: Path | None, as_json: bool) -> None:
    """Prove boot state and place; a newly issued geo-tag is locked into the TPM first."""

    async def once(opened: HostAgent) -> None:
        await opened.write_geo_tag()
        _tell_attested(await opened.attest(), as_json)
        if opened.not_renewed is not None:
            output.say(f"the certificate wasn't renewed: {opened.not_renewed.code}: {opened.not_renewed.detail}")

    async def again(opened: HostAgent) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        while not stop.is_set():
            try:
                await once(opened)
            except KeypeerClientError as error:
                output.say(f"exit code {exit_code(error)}: {error.code}: {error.detail}")
            try:
                await asyncio.wait_for(stop.wait(), watch)
            except TimeoutError:
                continue

    _run(home, folder, host, as_json, once if watch is None else again)


def _tell_attested(result: AttestResult, as_json: bool) -> None:
    if as_json:
        output.as_json({"appraisal": result.appraisal, "session_expires_at": result.session.expires_at})
        return
    appraisal = result.appraisal
    place = f"{appraisal.geo.country} ({appraisal.geo.place})" if appraisal.geo else "no geo-tag"
    good = f"host {appraisal.host} is good: {', '.join(appraisal.baselines)}; {place}"
    output.done(f"{good}; session ends {output.when(result.session.expires_at)}")


@agent.command()
@_folder_option
@_host_option
@home_option
@json_option
def run(folder: Path | None, host: str | None, home: Path | None, as_json: bool) -> None:
    """Keep this host attested and its keys while they are leased, until SIGTERM; helpers ask over a Unix socket."""

    async def work() -> None:
        from keypeer.agent import HostAgent
        from keypeer.agentd.daemon import Daemon
        from keypeer.agentd.ledger import boot_id
        from keypeer.agentd.process import prepare, until_told
        from keypeer.agentd.settings import read_settings

        state = state_of(home, folder, host)
        settings = read_settings(state.folder)
        prepare()
        async with HostAgent(state) as opened:
            await until_told(Daemon(opened, settings, boot_id()).run())

    run_in_words(work, as_json=as_json)


@agent.command()
@_folder_option
@_host_option
@home_option
@json_option
def status(folder: Path | None, host: str | None, home: Path | None, as_json: bool) -> None:
    """How the running agent fares: its attestation, its stream, what it holds and what it dropped."""

    async def work() -> None:
        from keypeer.agentd.local import LocalRequest, ask
        from keypeer.agentd.settings import read_settings, socket_path

        place = state_of(home, folder, host).folder
        answer, _ = ask(socket_path(place, read_settings(place)), LocalRequest(op="status"))
        if answer.status is None:
            raise StateError(answer.code or "local.answer", answer.detail, answer.hint)
        output.as_json(answer.status) if as_json else _tell_status(answer.status)

    run_in_words(work, as_json=as_json)


def _yes(what: bool) -> str:
    return "yes" if what else "no"


def _tell_status(status: AgentStatus) -> None:
    ago = "never" if status.attested_ago is None else f"{status.attested_ago:.0f} s ago"
    output.facts(
        [
            ("host", status.host),
            ("attested", f"{'yes' if status.attested else 'no'}, last {ago}"),
            ("stream", "open" if status.stream else "closed"),
            ("memory", status.memory),
            *((f"trouble: {what}", why) for what, why in status.trouble.items()),
        ]
    )
    columns = ("vm", "version", "generation", "lease", "verdict", "key here")
    rows = [
        (each.vm, str(each.version), str(each.generation), f"{each.seconds_left:.0f} s", each.verdict, _yes(each.key))
        for each in status.held
    ]
    output.table("held", columns, rows)
    if status.dropped:
        output.table("dropped", ("vm", "why", "reason"), [(each.vm, each.why, each.reason) for each in status.dropped])


@agent.command()
@click.argument("vm")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=None, help="A new file for the raw key."
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="First measure that the VM starts with this configuration: its inactive libvirt XML, or JSON.",
)
@click.option(
    "--key-version",
    type=click.IntRange(min=1),
    default=None,
    help="A version before the current one, which this host's lease names; for what it encrypted.",
)
@_folder_option
@_host_option
@home_option
@json_option
def fetch(
    vm: str,
    out: Path | None,
    config: Path | None,
    key_version: int | None,
    folder: Path | None,
    host: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Get VM's key, open it in the TPM, and try it on one page of memory. The key is never printed."""

    async def work(opened: HostAgent) -> None:
        await opened.write_geo_tag()
        if config is not None:
            await opened.launch(vm, _read(config))
        appraisal = (await opened.attest()).appraisal
        with await opened.release(vm, key_version) as key:
            _try(key)
            if file is not None:
                file.write(key.view())
            facts = _facts(key) | {"host": appraisal.host, "country": appraisal.geo.country if appraisal.geo else ""}
        if as_json:
            output.as_json(facts)
        else:
            output.done(f"GRANTED  {vm} to {facts['host']} ({facts['country']})")
            output.facts((name, str(value)) for name, value in facts.items() if name not in ("vm", "host", "country"))

    try:
        file = _new_file(out) if out is not None else None  # before a lease is taken
    except KeypeerClientError as error:
        fail(error, as_json=as_json)
    try:
        _run(home, folder, host, as_json, work)
    finally:
        if file is not None:
            file.close()
        if out is not None and not out.stat().st_size:
            out.unlink()


def _facts(key: VmKey) -> dict[str, Any]:
    return {
        "vm": key.vm,
        "version": key.version,
        "size": key.size,
        "generation": key.generation,
        "lease_expires_at": key.lease_expires_at,
        "grace": key.grace,
        "locked_memory": key.locked,
        "check_value": key.check_value(),
    }


def _try(key: VmKey) -> None:
    """One page encrypted and decrypted, as memory would be: AES-256-XTS, or AES-256-GCM for a 32-byte key."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    page = os.urandom(_PAGE_BYTES)
    if key.size == 64:
        cipher = Cipher(algorithms.AES(key.view()), modes.XTS(bytes(16)))
        encrypted = cipher.encryptor().update(page)
        good = cipher.decryptor().update(encrypted) == page
    else:
        with key.derive(
            "keypeer agent fetch", 0
        ) as trial:  # a nonce may repeat over trials: never under the key itself
            encryptor = Cipher(algorithms.AES(trial.view()), modes.GCM(bytes(12))).encryptor()
            encrypted = encryptor.update(page) + encryptor.finalize()
            decryptor = Cipher(algorithms.AES(trial.view()), modes.GCM(bytes(12), encryptor.tag)).decryptor()
            good = decryptor.update(encrypted) + decryptor.finalize() == page
    if not good or encrypted == page:
        raise StateError("key.unusable", f"the key of VM {key.vm} doesn't encrypt and decrypt a page")


def _new_file(path: Path) -> FileIO:
    """An empty file of its owner's alone."""
    try:
        return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
    except OSError as error:
        raise StateError(
            "output.file", f"{path}: {error.strerror}", "name a file that isn't there yet, in a folder that is"
        ) from None


@agent.command()
@click.option("--baseline", is_flag=True, help="As the document that `keypeer baseline put` takes.")
@_folder_option
@_host_option
@home_option
@json_option
def pcrs(baseline: bool, folder: Path | None, host: str | None, home: Path | None, as_json: bool) -> None:
    """The boot PCRs' values now."""

    async def work(opened: HostAgent) -> None:
        values = await opened.pcrs(PCR_BANK, BOOT_PCRS)
        if baseline or as_json:
            as_list = {str(index): [value.hex()] for index, value in values.items()}
            output.as_json({"bank": PCR_BANK, "pcrs": as_list})
        else:
            output.facts((f"{PCR_BANK}:{index}", value.hex()) for index, value in values.items())

    _run(home, folder, host, as_json, work)


@agent.command()
@click.option("--tcti", default=None, help="How to reach the TPM of a host that hasn't enrolled yet.")
@_folder_option
@_host_option
@home_option
@json_option
def ek(tcti: str | None, folder: Path | None, host: str | None, home: Path | None, as_json: bool) -> None:
    """This TPM's EK digest, to compare or to put on the inventory."""
    from keypeer.collect import ek_digest
    from keypeer.tpm import Tpm

    try:
        with Tpm.open(tcti or state_of(home, folder, host).settings.tcti) as tpm:
            digest = ek_digest(tpm)
    except KeypeerClientError as error:
        fail(error, as_json=as_json)
    output.as_json({"ek_digest": digest}) if as_json else output.done(digest)
