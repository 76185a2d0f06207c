"""How a worker loads what it is made of: sooner and smaller, without what no worker ever uses."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # what OpenSSL asks for the system's CA certificates


@contextmanager
def lean_imports() -> Iterator[None]:
    """While the block imports: no garbage is looked for, rich isn't there (structlog would load it for tracebacks in
    colour), and neither are the system's CA certificates, which aiohttp parses at its import for clients that bring no
    TLS context. The service's bring theirs."""
    before = {name: os.environ.get(name) for name in _CERTIFICATES}
    os.environ.update(dict.fromkeys(_CERTIFICATES, os.devnull))
    hidden = "rich" not in sys.modules
    if hidden:
        sys.modules["rich"] = None  # type: ignore[assignment]  # an import of it fails (importlib, "sys.modules")
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()  # modules live as long as the process: no collection needs to look at them
        if hidden:
            del sys.modules["rich"]
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
