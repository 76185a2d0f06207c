"""The files that web workers count in, as the supervisor sees them: it loads nothing of what they do."""

from __future__ import annotations

from pathlib import Path

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus-client at import, so the supervisor sets it


def worker_died(folder: Path, pid: int) -> None:
    """Lets the gauges of a dead worker go."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]  # prometheus-client leaves it untyped


def clear(folder: Path) -> None:
    """Removes an earlier run's files, so that counters start at zero with the service."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink()
