"""keypeer for hosts and tools: VM memory-encryption keys from an attested key service.

    with keypeer.Host.open("/var/lib/keypeer") as host, host.release("web-1") as key:
        use(key.view())

``HostAgent`` is the same for asyncio; ``AsyncClient`` is every call of the HTTP API. Errors have one root,
``KeypeerClientError``. The TPM needs the extra: ``keypeer[tpm]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keypeer.agent import HostAgent
    from keypeer.client import AsyncClient
    from keypeer.errors import (
        AnswerError,
        KeypeerClientError,
        ProblemError,
        ReleaseForged,
        ServiceUnavailable,
        StateError,
        TpmError,
    )
    from keypeer.host import Host
    from keypeer.vmkey import VmKey

# Loaded when first asked for: `import keypeer.wire` in the service, and a command's --help, shouldn't pay for aiohttp.
_HOMES = {
    "AnswerError": "keypeer.errors",
    "AsyncClient": "keypeer.client",
    "Host": "keypeer.host",
    "HostAgent": "keypeer.agent",
    "KeypeerClientError": "keypeer.errors",
    "ProblemError": "keypeer.errors",
    "ReleaseForged": "keypeer.errors",
    "ServiceUnavailable": "keypeer.errors",
    "StateError": "keypeer.errors",
    "TpmError": "keypeer.errors",
    "VmKey": "keypeer.vmkey",
}

__all__ = [
    "AnswerError",
    "AsyncClient",
    "Host",
    "HostAgent",
    "KeypeerClientError",
    "ProblemError",
    "ReleaseForged",
    "ServiceUnavailable",
    "StateError",
    "TpmError",
    "VmKey",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'keypeer' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
