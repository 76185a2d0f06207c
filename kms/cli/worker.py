"""An HSM worker of a command's own, beside the service's: works whether the service runs or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hsm_adapter.pin import Pin
from kms.cli.files import write_private
from kms.settings import Home


@contextmanager
def hsm_worker(home: Home, asked: Pin | None) -> Iterator[Path]:
    """The socket of a worker that lives as long as the block; ``asked`` is a PIN that was prompted for."""
    home.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket = home.run / f"command-{os.getpid()}.sock"
    config = socket.with_suffix(".json")
    write_private(config, json.dumps(home.hsm_worker(socket)).encode())
    process = subprocess.Popen(
        [sys.executable, "-m", "hsm_adapter", "--config", str(config)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        if process.stdin is not None:
            process.stdin.write(asked.reveal().encode() if asked else b"")
            process.stdin.close()
        yield socket
    finally:
        process.terminate()
        process.wait()
        config.unlink()
        socket.unlink(missing_ok=True)
