"""A software TPM (swtpm) driven by tpm2-tools: evidence that no line of ours has made."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from keypeer.wire.profile import GEO_NV_INDEX, GEO_NV_SIZE
from kms.evidence.model import BindingEvidence, Evidence, GeoEvidence

START_DEADLINE_S = 10.0
COMMAND_DEADLINE_S = 60.0
_INDEX = f"0x{GEO_NV_INDEX:08x}"
_ATTRIBUTES = "ownerwrite|writedefine|ownerread|authread|no_da"
_BINDING = "fixedtpm|fixedparent|sensitivedataorigin|noda|decrypt"


def available() -> bool:
    """Whether Debian's swtpm and tpm2-tools are here."""
    return shutil.which("swtpm") is not None and shutil.which("tpm2_quote") is not None


class ToolsTpm:
    """One swtpm in ``folder`` (short: Unix socket paths end at 107 bytes), used as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "state").mkdir()
        self.ek_algorithm, self.signing = "ecc", "ecdsa"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ToolsTpm:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Power on; TPM2_Startup(CLEAR)."""
        socket = self.folder / "sock"
        self._process = subprocess.Popen(
            [
                "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.folder / 'state'}",
                "--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl",
                "--flags", "startup-clear,not-need-init",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + START_DEADLINE_S
        while not socket.exists():
            assert time.monotonic() < deadline, "swtpm didn't start"
            assert self._process.poll() is None, "swtpm ended at once"
            time.sleep(0.005)

    def stop(self) -> None:
        """Power off."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_DEADLINE_S)
            self._process = None
        (self.folder / "sock").unlink(missing_ok=True)

    def reboot(self) -> None:
        """resetCount rises by one, PCRs start over, transient objects are gone."""
        self.stop()
        self.start()

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Runs one tpm2-tools command in the folder; what it left loaded is flushed (swtpm has no resource
        manager)."""
        done = self._run(command)
        self._run(("tpm2_flushcontext", "-t"))
        self._run(("tpm2_flushcontext", "-l"))
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode()}"
        return done

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)

    # ── what a host does ───────────────────────────────────────────────────────────────────────────────────────

    def create_ek(self, algorithm: str = "ecc") -> bytes:
        """TPM2B_PUBLIC of the default EK of that algorithm; context ek.ctx."""
        self.ek_algorithm = algorithm
        self.run("tpm2_createek", "-G", algorithm, "-c", "ek.ctx", "-u", "ek.pub")
        return self.read("ek.pub")

    def create_ak(self, algorithm: str = "ecc", signing: str = "ecdsa", digest: str = "sha256") -> bytes:
        """TPM2B_PUBLIC of an AK under the EK; context ak.ctx."""
        self.signing = signing
        self.run(
            "tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", algorithm, "-g", digest, "-s", signing,
            "-u", "ak.pub", "-r", "ak.priv",
        )  # fmt: skip
        return self.read("ak.pub")

    def activate(self, id_object: bytes, encrypted_secret: bytes) -> bytes | None:
        """The credential's secret, None when the TPM refuses it."""
        # tpm2-tools' file: magic, version, TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET
        self.write("credential", bytes.fromhex("badcc0de00000001") + id_object + encrypted_secret)
        # The low-range templates (L-1, L-2) want PolicySecret of the endorsement hierarchy; the high-range ones have
        # userWithAuth set (TCG EK Credential Profile 2.5 §B.4).
        by_policy = self.ek_algorithm in ("ecc", "rsa")
        if by_policy:
            self.run("tpm2_startauthsession", "--policy-session", "-S", "session.ctx")
            self.run("tpm2_policysecret", "-S", "session.ctx", "-c", "e")
        authorisation = ("-P", "session:session.ctx") if by_policy else ()
        done = self.run(
            "tpm2_activatecredential", "-c", "ak.ctx", "-C", "ek.ctx", *authorisation,
            "-i", "credential", "-o", "secret", check=False,
        )  # fmt: skip
        if by_policy:
            self.run("tpm2_flushcontext", "session.ctx")
        return self.read("secret") if done.returncode == 0 else None

    def create_binding_key(self, pcrs: str, attributes: str = _BINDING) -> bytes:
        """TPM2B_PUBLIC of an RSA-2048 decrypt key bound to ``pcrs`` (sha256:0,1,…); context binding.ctx."""
        self.run("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "storage.ctx")
        self.run("tpm2_createpolicy", "--policy-pcr", "-l", pcrs, "-L", "binding.policy")
        self.run(
            "tpm2_create", "-C", "storage.ctx", "-G", "rsa2048:null:null", "-a", attributes, "-L", "binding.policy",
            "-u", "binding.pub", "-r", "binding.priv",
        )  # fmt: skip
        self.load_binding_key()
        return self.read("binding.pub")

    def load_binding_key(self) -> None:
        """After a reboot."""
        self.run("tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "storage.ctx")
        self.run("tpm2_load", "-C", "storage.ctx", "-u", "binding.pub", "-r", "binding.priv", "-c", "binding.ctx")

    def write_geo_index(self, digest: bytes, *, lock: bool = True) -> None:
        """Defines, writes and write-locks the geo index."""
        self.write("digest", digest)
        self.run("tpm2_nvdefine", "-C", "o", "-s", str(GEO_NV_SIZE), "-a", _ATTRIBUTES, _INDEX)
        self.run("tpm2_nvwrite", "-C", "o", "-i", "digest", _INDEX)
        if lock:
            self.run("tpm2_nvwritelock", "-C", "o", _INDEX)

    def collect(self, qualifying: bytes, pcrs: str, binding_name: bytes, tag: tuple[bytes, bytes]) -> Evidence:
        """Quote of ``pcrs``, NV_Certify of the geo index, certification of the binding key."""
        value = qualifying.hex()
        self.run(
            "tpm2_quote", "-c", "ak.ctx", "-l", pcrs, "-q", value, "-m", "quote", "-s", "quote.sig",
            "-o", "pcrs", "-F", "values", "--scheme", self.signing,
        )  # fmt: skip
        self.run(
            "tpm2_certify", "-C", "ak.ctx", "-c", "binding.ctx", "-g", "sha256", "--scheme", self.signing,
            "-o", "certify", "-s", "certify.sig",
        )  # fmt: skip
        self.run(
            "tpm2_nvcertify", "-C", "ak.ctx", "-c", "o", "-g", "sha256", "-s", self.signing, "-q", value,
            "--size", str(GEO_NV_SIZE), "--offset", "0", "--attestation", "nv", "-o", "nv.sig", _INDEX,
        )  # fmt: skip
        return Evidence(
            quote_attest=self.read("quote"),
            quote_signature=self.read("quote.sig"),
            pcr_values=self.read("pcrs"),
            binding_name=binding_name,
            geo=GeoEvidence(*tag, self.read("nv"), self.read("nv.sig")),
            binding=BindingEvidence(self.read("binding.pub"), self.read("certify"), self.read("certify.sig")),
        )

    def _run(self, command: tuple[str, ...]) -> subprocess.CompletedProcess[bytes]:
        environment = os.environ | {"TPM2TOOLS_TCTI": f"swtpm:path={self.folder / 'sock'}", "TSS2_LOG": "all+NONE"}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, timeout=COMMAND_DEADLINE_S, check=False
        )
