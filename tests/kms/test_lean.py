"""What a worker doesn't load, and that whoever needs it afterwards has it."""

from __future__ import annotations

import subprocess
import sys


def python(code: str) -> str:
    """What ``code`` prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADED = """
import gc, os, sys
from kms.lean import lean_imports
os.environ.pop("SSL_CERT_DIR", None)
before = dict(os.environ)
with lean_imports():
    assert not gc.isenabled()
    import kms.app, kms.background
assert dict(os.environ) == before
assert gc.isenabled()
"""


def test_a_worker_loads_no_colours_no_command_line_and_no_other_store() -> None:
    loaded = python(LOADED + "print(*sys.modules)").split()
    assert "aiohttp.web" in loaded
    assert not {"rich", "pygments", "click", "asyncpg", "pkcs11", "kms.store.postgres"} & set(loaded)


def test_what_was_hidden_is_there_afterwards() -> None:
    assert python(LOADED + "import rich; print(rich.__name__)") == "rich"


def test_aiohttps_own_context_trusts_nobody_and_the_services_clients_bring_one_that_does() -> None:
    code = """
import asyncio, ssl
from aiohttp import connector
from kms.webhooks.client import HttpWebhooks
from kms.webhooks.port import Webhook
from kms.witness.client import HttpWitnesses

async def contexts():
    webhooks = HttpWebhooks()
    try:
        await webhooks.post(Webhook("https://127.0.0.1:1/", b""), {}, b"")
    except Exception:
        pass
    found = webhooks._session.connector._ssl
    await webhooks.close()
    return found

context = asyncio.run(contexts())
print(connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509_ca"])
print(context.cert_store_stats() == ssl.create_default_context().cert_store_stats())
print(context.verify_mode.name, context.check_hostname)
"""
    assert python(LOADED + code).splitlines() == ["0", "True", "CERT_REQUIRED True"]


def test_the_supervisor_loads_none_of_what_its_workers_do() -> None:
    loaded = set(python("import sys, kms.cli.serve, kms.supervisor; print(*sys.modules)").split())
    assert not {"aiohttp", "prometheus_client", "lmdb", "kms.flows.context", "kms.evidence.appraise", "pkcs11"} & loaded
