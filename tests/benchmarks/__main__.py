"""All benchmarks, one after another, with their own defaults.

python -m tests.benchmarks
"""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    "rewrap", "evidence", "boot_log", "ima", "store_load", "postgres", "releases", "vms_million", "vm_lists",
    "kek_rotation", "image", "trust", "beside_openbao", "restart", "network_hsm", "capacity", "cold_start",
)  # fmt: skip


def main() -> int:
    """Runs each in a process of its own, so that none measures another's memory; 1 when any failed."""
    failed = []
    for name in NAMES:
        print(f"── {name} ──", flush=True)
        if subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"], check=False).returncode:
            failed.append(name)
        print(flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
