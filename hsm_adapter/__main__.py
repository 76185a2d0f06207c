"""``python -m hsm_adapter --config FILE``: one worker. Exit status 0 after SIGTERM or recycling, 78 on bad settings."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Final

# structlog would load it for tracebacks in colour, 70 ms and 4 MiB, which a worker never writes.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # an import of it fails (importlib, "sys.modules")

import structlog  # noqa: E402 - after that

from hsm_adapter import hardening  # noqa: E402
from hsm_adapter.engine import Engine  # noqa: E402
from hsm_adapter.network import NETWORK  # noqa: E402
from hsm_adapter.pin import read_pin  # noqa: E402
from hsm_adapter.settings import SettingsError, read_settings  # noqa: E402
from hsm_adapter.worker import SocketInUse, Worker  # noqa: E402

log: Final = structlog.get_logger()


def main(arguments: list[str] | None = None) -> int:
    """Run a worker until it is told to stop or has worn out; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hsm_adapter", description="Run one HSM worker.")
    parser.add_argument("--config", required=True, type=Path, help="settings file, JSON or TOML")
    options = parser.parse_args(arguments)
    hardening.protect_memory()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    try:
        settings = read_settings(options.config)
        if settings.exit_with_parent:
            hardening.exit_with_parent(settings.parent)
        os.environ.update(settings.environment)
        delay, per_call = settings.simulated_delay_ms / 1000, settings.simulated_delay_per == "call"
        if delay:
            log.warning("simulating a network HSM", ms=settings.simulated_delay_ms, per=settings.simulated_delay_per)
        NETWORK.call_s = delay if per_call else 0.0
        engine = Engine(
            settings.module,
            settings.token_label,
            partial(read_pin, settings.pin),
            lock=settings.lock_path,
            self_test_interval=settings.self_test_interval,
            operation_delay=0.0 if per_call else delay,
        )
        engine.start()
        Worker(engine, Path(settings.socket), settings.uids, settings.recycle_after).run()
    except (SettingsError, SocketInUse) as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    engine.close()
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
