"""What the composition root reads from the service's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from kms.app import read_vendor_cas
from kms.errors import BadRequest
from kms.setting_tables import HsmSettings, Settings
from kms.settings import Home
from tests.support.vendor_ca import crl, make_ca

ROOT = make_ca("Vendor Root CA")
VENDOR = make_ca("Vendor EK CA", ROOT)


def home(folder: Path) -> Home:
    return Home(folder, Settings(hsm=HsmSettings(module="none.so", pin="env:PIN")))


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_vendor_cas_and_crls_are_read_with_their_folders(tmp_path: Path) -> None:
    write(tmp_path / "vendor-cas" / "vendor" / "RootCA" / "root.crt", ROOT.der)
    write(tmp_path / "vendor-cas" / "vendor" / "IntermediateCA" / "ek.cer", VENDOR.der)
    write(tmp_path / "crls" / "vendor" / "root.crl", crl(ROOT, {}))
    cas = read_vendor_cas(home(tmp_path))
    assert set(cas.anchors) == {ROOT.certificate, VENDOR.certificate}
    assert [each.file for each in cas.crls] == ["vendor/root.crl"]


def test_without_folders_nothing_is_known(tmp_path: Path) -> None:
    cas = read_vendor_cas(home(tmp_path))
    assert (cas.anchors, cas.crls) == ((), ())


def test_file_that_is_no_crl_is_named(tmp_path: Path) -> None:
    write(tmp_path / "crls" / "vendor" / "notes.txt", b"hello")
    with pytest.raises(BadRequest, match=r"vendor/notes\.txt"):
        read_vendor_cas(home(tmp_path))
