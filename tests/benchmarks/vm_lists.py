"""Pages of VM lists over many keys: whole, by prefix, and by each kind of filter.

    python -m tests.benchmarks.vm_lists [--keys 200000] [--limit 100]

Keys are made through the service. Half belong to one of 100 tenants, every tenth carries one of two labels, every
thousandth a rare one; some are suspended. Then pages from all over the names are asked for over HTTPS, one caller after
the other, by cursors that a reader would have. The mark is for a page of the service's default size.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.creation import BATCH
from tests.benchmarks.report import Row, Spread, tell
from tests.benchmarks.vms_million import file_bytes, in_words, names, row
from tests.support.service import Service, put_demo_policy, running_service

MARK_MS = 20  # milliseconds a page
PAGES = 200  # of each kind
SUSPENDED = 200
FILTERS = {
    "all": "",
    "prefix=0": "prefix=0",
    "tenant (1 of 200)": "tenant=tenant-07",
    "label (1 of 20)": "labels=tier=gold",
    "rare label (1 of 1,000)": "labels=site=attic",
    "tenant and label": "tenant=tenant-05&labels=tier=gold",
    "state=suspended": "state=suspended",
    "state=active": "state=active",
    "policy, of every key": "policy=eu",
    "policy, of no key": "policy=us",
    "tenant and policy of no key": "tenant=tenant-07&policy=us",
}


def create(service: Service, count: int) -> list[str]:
    """Makes the keys; all names."""
    operator, made = service.caller("operator"), []
    for batch in names(count):
        body = [{"vm": vm, "policy": "eu", **_fields(len(made) + number)} for number, vm in enumerate(batch)]
        for start in range(0, len(body), BATCH // 2):
            reply = operator.post("/v1/vm-batches", {"vms": body[start : start + BATCH // 2]})
            assert reply.status == 201, reply
        made += batch
        if sys.stderr.isatty():
            print(f"\r{len(made):,} of {count:,} keys", end="", file=sys.stderr, flush=True)
    for vm in made[:: max(1, count // SUSPENDED)]:
        assert service.caller("officer").post(f"/v1/vms/{vm}/suspend", {}).status == 200
    return made


def _fields(number: int) -> dict[str, object]:
    labels = {"tier": "gold" if number % 20 else "lead"} if number % 10 == 0 else {}
    labels |= {"site": "attic"} if number % 1000 == 0 else {}
    tenant = {"tenant": f"tenant-{number // 2 % 100:02d}"} if number % 2 == 0 else {}
    return {"labels": labels, **tenant}


def measure(service: Service, query: str, starts: list[str], limit: int) -> tuple[list[float], float]:
    """Milliseconds of each page, and how many items a page had."""
    auditor, spent, items = service.caller("auditor"), [], 0
    for after in starts:
        begin = time.perf_counter()
        reply = auditor.get(f"/v1/vms?limit={limit}&after={after}&{query}")
        spent.append((time.perf_counter() - begin) * 1000)
        assert reply.status == 200, reply
        items += len(reply.body["items"])
    return spent, items / len(starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--limit", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_service(Path(folder) / "service") as service:
        put_demo_policy(service)
        begin, empty = time.perf_counter(), file_bytes(service)
        made = create(service, options.keys)
        spent = time.perf_counter() - begin
        size, words = (file_bytes(service) - empty) / options.keys, in_words(options.keys)
        tell(
            Row(
                what=f"{words} VM keys made, half of them with index records",
                unit="1/s",
                ours=Spread.of([options.keys / spent]),
            ),
            row(f"store, of {words} VM keys, half with index records: bytes a key", "bytes", [size]),
        )
        starts = ["", *random.Random(1).sample(made, PAGES)]  # noqa: S311  # places of a benchmark
        for words, query in FILTERS.items():
            times, items = measure(service, query, starts, options.limit)
            p99 = statistics.quantiles(times, n=100)[98]
            note = f"p50 {statistics.median(times):.1f} ms, {items:.1f} items a page"
            of = in_words(options.keys)
            what = f"a page of {options.limit} VMs out of {of}, {words}: p99"
            tell(row(what, "ms", [p99], MARK_MS, note=note, chief=not query))


if __name__ == "__main__":
    main()
