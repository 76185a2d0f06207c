"""Fail-overs by Patroni under load, counted: the longer run beside ``tests.faults.failovers``.

    python -m tests.faults.patroni [--rounds 12] [--json]

Two service nodes on three PostgreSQL servers, each under a Patroni of its own, and an etcd, all on this machine. The
leader's machine (Patroni and server) is killed, its server alone, its machine frozen, its machine and a service node
killed, in turns; Patroni does the rest, rewinding included. What a round does else is told in tests/support/
failovers.py. Needs Debian's packages ``patroni`` and ``etcd-server``. Exit code 1 when anything acknowledged was lost,
anything happened twice, or a key went to a host while another one held it. A minute a round or less.
"""

from __future__ import annotations

import sys
from functools import partial

from tests.faults.failovers import count
from tests.support.failovers import fail_overs
from tests.support.patroni import PatroniFailOvers, missing, patroni_cluster


def main() -> int:
    if packages := missing():
        print(f"apt-get install --no-install-recommends {' '.join(packages)}, then again", file=sys.stderr)
        return 2
    return count(__doc__ or "", 12, partial(fail_overs, made=patroni_cluster, kind=PatroniFailOvers))


if __name__ == "__main__":
    raise SystemExit(main())
