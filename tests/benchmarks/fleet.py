"""Attestations a second end to end, and the fleet that can re-attest so often; Keylime's check and the limits beside.

    python -m tests.benchmarks.fleet [--hosts 2000] [--rounds 5] [--seconds 4] [--peer-python PYTHON]

The service runs as `keypeer init` makes it (SoftHSM, LMDB, two web and two HSM workers), with the load generator beside
it on the same cores. Simulated hosts, each with keys, certificate, connection, geo-tag and session of its own, attest
one after another, all round: steady state, in which the answer carries the next challenge. Evidence is signed over that
challenge's nonce when it is sent, by a software key; the time that takes is in the figures, and is told. Beside, in
turns: aiohttp alone over the same TLS, as many workers, answering the same requests, signed as often, with as many
bytes; two P-256 verifications, the least that such evidence costs, on one core; and with ``--peer-python``, an
interpreter that can import ``keylime`` (PyPI, in an environment of its own), its checkquote on one core: the function
alone, on a quote alone, without TLS, store, audit log, nonce, baseline or geo-tag.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keypeer.wire.profile import QUOTE_PCRS
from tests.benchmarks.attesting import Crowd, bare_crowd, crowd
from tests.benchmarks.evidence import Verification, rate, verify
from tests.benchmarks.load import Figures
from tests.benchmarks.releases import bare
from tests.benchmarks.report import Row, Spread, tell
from tests.support.enrolled import Enrolled, enrol_many
from tests.support.service import Service, put_demo_policy, running_service
from tests.support.simulated_host import SimulatedHost
from tests.support.steady_host import evidence_of

AT_ONCE = (1, 32)
FLEET_MARK, EVERY_S = 60_000, 60  # hosts, and seconds between two attestations of one
P99_MARK_MS = 50.0  # at the mark's rate: an agent waits far longer for its TPM
PACED_SHARE = 0.7  # of what the closed loop reached, at most, where that is below the mark
PEER_CHECKS = 2000

PEER = """
import json, sys, time
from keylime.tpm.tpm_util import checkquote
quotes = [(each[0].encode(), *map(bytes.fromhex, each[1:])) for each in json.load(open(sys.argv[1]))]
start = time.perf_counter()
for number in range(int(sys.argv[2])):
    key, nonce, signature, attest, pcrs = quotes[number % len(quotes)]
    checkquote(key, nonce, signature, attest, pcrs, "sha256")
print(int(sys.argv[2]) / (time.perf_counter() - start))
"""


def peer_quotes(hosts: Sequence[SimulatedHost]) -> list[list[str]]:
    """AK in PEM, nonce, signature, quote and PCR values as Keylime takes them (those in tpm2-tools' form)."""
    quotes = []
    for number, host in enumerate(hosts):
        nonce = number.to_bytes(32, "big")
        attest, signature = host.quote(nonce, QUOTE_PCRS)
        key = host.ak.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        values = [host.pcrs[pcr] for pcr in QUOTE_PCRS]
        quotes.append([key, nonce.hex(), signature.hex(), attest.hex(), _tpm2_tools(values).hex()])
    return quotes


def _tpm2_tools(values: Sequence[bytes]) -> bytes:
    """tpm2_quote's --pcr file: TPML_PCR_SELECTION and TPML_DIGESTs as C structures lie in memory (little-endian)."""
    bitmap = sum(1 << pcr for pcr in QUOTE_PCRS).to_bytes(3, "little")
    selections = struct.pack("<IHB3s2x", 1, 0x000B, 3, bitmap) + bytes(15 * 8)
    lists = [values[at : at + 8] for at in range(0, len(values), 8)]
    packed = b""
    for each in lists:
        digests = [struct.pack("<H64s", len(value), value) for value in each]
        packed += struct.pack("<I", len(each)) + b"".join(digests) + bytes((8 - len(each)) * 66)
    return selections + struct.pack("<I", len(lists)) + packed


def peer_rate(python: str, quotes: list[list[str]]) -> float:
    """Keylime's checks a second."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(quotes, file)
        file.flush()
        command = [python, "-c", PEER, file.name, str(PEER_CHECKS)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return float(done.stdout)


def verifications(hosts: Sequence[Enrolled]) -> list[object]:
    """Of each host the two signatures that are new in each exchange."""
    rows: list[object] = []
    for host in hosts:
        key = host.tpm.ak.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        two: list[Verification] = [(key, *each) for each in evidence_of(host.tpm, QUOTE_PCRS)]
        rows.append(two)
    return rows


async def measure(service: Service, options: argparse.Namespace) -> None:
    hosts = await enrol_many(service, options.hosts, keep=options.hosts)
    ours = await crowd(service, hosts)
    answer = len((await ours.closed_loop(1.0, 1)).answer)
    checks, quotes = verifications(hosts[:100]), peer_quotes([host.tpm for host in hosts[:100]])
    figures: dict[int, list[Figures]] = {each: [] for each in AT_ONCE}
    beside: dict[str, list[float]] = {"aiohttp alone": [], "two verifications, one core": []}
    with bare(service, answer) as port:
        alone = await bare_crowd(port, ours)
        for _ in range(options.rounds):
            for at_once in AT_ONCE:
                figures[at_once].append(await ours.closed_loop(options.seconds, at_once))
            beside["aiohttp alone"].append((await alone.closed_loop(options.seconds, max(AT_ONCE))).rate)
            beside["two verifications, one core"].append(rate(verify, checks, 1.0))  # type: ignore[arg-type]  # rows of it
            if options.peer_python:
                peer = beside.setdefault("Keylime checkquote, one quote, one core, function only", [])
                peer.append(peer_rate(options.peer_python, quotes))
        alone.close()
    report(ours, figures, {name: Spread.of(values) for name, values in beside.items()}, options)
    await paced(ours, min(FLEET_MARK / EVERY_S, PACED_SHARE * rates(figures).median), options)
    ours.close()


def rates(figures: dict[int, list[Figures]]) -> Spread:
    """Attestations a second of the most hosts at once."""
    return Spread.of(each.rate for each in figures[max(AT_ONCE)])


def report(
    ours: Crowd, figures: dict[int, list[Figures]], beside: dict[str, Spread], options: argparse.Namespace
) -> None:
    reached, signing = rates(figures), ours.signing / ours.made * 1e6
    mark = FLEET_MARK / EVERY_S
    note = f"{options.hosts:,} hosts; of each exchange {signing:.0f} µs are the load generator's, for the evidence"
    tell(
        Row(
            what=f"attestations end to end, {max(AT_ONCE)} at once",
            unit="1/s",
            ours=reached,
            beside=beside,
            mark=f"≥ {mark:,.0f}/s",
            met=reached.median >= mark,
            note=note,
            chief=True,
        )
    )
    for at_once, rounds in figures.items():
        for which in ("p50", "p99"):
            times = Spread.of(getattr(each, which) * 1000 for each in rounds)
            tell(Row(what=f"attestation, {which}, {at_once} at once", unit="ms", ours=times, better="less"))
    for every in (EVERY_S, EVERY_S // 2):
        fleet = Spread(reached.median * every, reached.low * every, reached.high * every)
        what = f"fleet: hosts that re-attest every {every} s"
        row = Row(what=what, unit="hosts", ours=fleet)
        if every == EVERY_S:
            met = fleet.median >= FLEET_MARK
            row = msgspec.structs.replace(row, mark=f"≥ {FLEET_MARK:,}", met=met, chief=True)
        tell(row)


async def paced(ours: Crowd, a_second: float, options: argparse.Namespace) -> None:
    """Answers' times while hosts come as a fleet's do, whatever became of those before."""
    rounds = [await ours.paced(options.seconds, a_second) for _ in range(options.rounds)]
    for which in ("p50", "p99"):
        times = Spread.of(getattr(each, which) * 1000 for each in rounds)
        mark = {"mark": f"≤ {P99_MARK_MS:g}", "met": times.median <= P99_MARK_MS} if which == "p99" else {}
        what = f"attestation, {which}, {a_second:,.0f} hosts a second coming evenly"
        tell(Row(what=what, unit="ms", ours=times, better="less", **mark))  # type: ignore[arg-type]  # as above


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--peer-python")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_service(Path(name) / "service") as service:
        put_demo_policy(service)
        uvloop.run(measure(service, options))


if __name__ == "__main__":
    main()
