"""A host without the server's dependencies, and a tool without a TPM, import what they need."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
{code}
"""
HYPERVISOR = ("images", "libvirt", "migrate", "qemu", "tmemk")
SERVER = {"kms", "hsm_adapter", "pkcs11", "lmdb", "uvloop", "prometheus_client", "asn1crypto", "cffi"}
MODULES = ("agent", "client", "collect", "host", "session", "state", "tpm", "transport", "vmkey", "wire.messages")


def run(code: str, blocked: set[str]) -> subprocess.CompletedProcess[str]:
    program = BLOCKED.format(blocked=blocked, code=code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("module", [*MODULES, *(f"hypervisor.{name}" for name in HYPERVISOR)])
def test_every_module_loads_without_the_server_and_the_tss(module: str) -> None:
    done = run(f"import keypeer.{module}", (SERVER - {"cffi"}) | {"tpm2_pytss"})
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_there_without_the_tss() -> None:
    done = run(
        "import keypeer; print(sorted(keypeer.__all__) == sorted(n for n in keypeer.__all__ if getattr(keypeer, n)))",
        (SERVER - {"cffi"}) | {"tpm2_pytss"},
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_without_the_tss_the_tpm_says_what_to_install() -> None:
    code = """
from keypeer import TpmError
from keypeer.tpm import Tpm
try:
    Tpm.open("swtpm:path=/nowhere")
except TpmError as error:
    print(error.code, error.hint)
"""
    done = run(code, {"tpm2_pytss"})
    assert done.stdout == "tpm.missing install keypeer[tpm]\n", done.stderr


def test_import_keypeer_is_light() -> None:
    code = "import keypeer; print(sorted(set(sys.modules) & {'aiohttp', 'cryptography', 'tpm2_pytss', 'rich', 'ssl'}))"
    done = run(code, SERVER)
    assert done.stdout == "[]\n", done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    import keypeer

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = keypeer.Nothing
