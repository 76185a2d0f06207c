"""A software TPM (swtpm) of its own, blank or with an EK certificate as a vendor ships it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from keypeer.tpm import Tpm, ek_public
from keypeer.tpm.device import translated

START_S = 10.0  # seconds; starting takes 5 ms, a busy machine longer
EK_CERTIFICATE_INDEX = 0x01C00002  # RSA-2048, template L-1 (TCG EK Credential Profile 2.5 §2.2.1.4)
EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
_FILL_BYTES = 64  # of 0xFF, as vendors fill an index up


class SwTpm:
    """Powered on inside a ``with`` block; its state is gone afterwards."""

    def __init__(self) -> None:
        # Short: the path of a Unix socket ends at 107 bytes, and pytest's folders are longer.
        self.folder = Path(tempfile.mkdtemp(prefix="kp-tpm-"))
        (self.folder / "state").mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def tcti(self) -> str:
        """What ``Tpm.open`` takes."""
        return f"swtpm:path={self.folder / 'sock'}"

    def start(self) -> None:
        """Power on; TPM2_Startup(CLEAR)."""
        path = self.folder / "sock"
        self._process = subprocess.Popen(
            [
                "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.folder / 'state'}",
                "--server", f"type=unixio,path={path}", "--ctrl", f"type=unixio,path={path}.ctrl",
                "--flags", "startup-clear,not-need-init",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        # A socket's file is there before anybody listens on it.
        while not (_listens(path) and _listens(Path(f"{path}.ctrl"))):
            assert self._process.poll() is None, "swtpm ended at once"
            assert time.monotonic() < deadline, "swtpm didn't start"
            time.sleep(0.002)

    def stop(self) -> None:
        """Power off (SIGTERM)."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_S)
            self._process = None
        (self.folder / "sock").unlink(missing_ok=True)
        (self.folder / "sock.ctrl").unlink(missing_ok=True)

    def reboot(self) -> None:
        """resetCount rises by one, PCRs start over, transient objects are gone."""
        self.stop()
        self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It answers nothing inside the block."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def open(self) -> Tpm:
        """A connection."""
        return Tpm.open(self.tcti)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


class VendorCa:
    """A TPM vendor's CA of a test's own."""

    def __init__(self, name: str = "test TPM vendor") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.certificate = self._issue(self.name, self.key.public_key(), is_ca=True)

    @property
    def pem(self) -> bytes:
        """For the folder of vendor CAs."""
        return self.certificate.public_bytes(Encoding.PEM)

    def ek_certificate(self, public_key: CertificatePublicKeyTypes) -> bytes:
        """DER over an EK: empty subject, EK usage."""
        return self._issue(x509.Name([]), public_key, is_ca=False).public_bytes(Encoding.DER)

    def _issue(self, subject: x509.Name, public_key: CertificatePublicKeyTypes, *, is_ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if not is_ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([EK_USAGE]), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def ship(tpm: SwTpm, vendor: VendorCa) -> bytes:
    """Certifies the EK as the vendor and stores the certificate in NV, filled up with 0xFF; returns its DER. Takes some
    20 ms where swtpm_setup takes 350 or more."""
    with tpm.open() as opened:
        certificate = vendor.ek_certificate(_rsa_key(ek_public(opened)))
        define_nv(opened, EK_CERTIFICATE_INDEX, certificate + b"\xff" * _FILL_BYTES)
    return certificate


def define_nv(tpm: Tpm, index: int, contents: bytes) -> None:
    """An NV index that anyone may read."""
    from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC

    attributes = TPMA_NV.OWNERWRITE | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA
    public = TPMS_NV_PUBLIC(nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=attributes, dataSize=len(contents))
    with translated():
        handle = tpm.esys.nv_define_space(b"", TPM2B_NV_PUBLIC(nvPublic=public))
        for start in range(0, len(contents), 512):
            tpm.esys.nv_write(handle, contents[start : start + 512], start, auth_handle=ESYS_TR.OWNER)


def _rsa_key(public: bytes) -> rsa.RSAPublicKey:
    from tpm2_pytss import TPM2B_PUBLIC

    area, _ = TPM2B_PUBLIC.unmarshal(public)
    key = load_der_public_key(area.to_der())
    assert isinstance(key, rsa.RSAPublicKey)
    return key


@contextmanager
def running_swtpm(vendor: VendorCa | None = None) -> Iterator[SwTpm]:
    """A blank TPM, powered on; with an EK certificate when there is a vendor."""
    with SwTpm() as tpm:
        if vendor is not None:
            ship(tpm, vendor)
        yield tpm
