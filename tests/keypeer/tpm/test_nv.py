"""The geo index: written once, locked, replaced only as a whole; and reading other indices."""

from __future__ import annotations

from typing import Any

import pytest

from keypeer.errors import TpmError
from keypeer.tpm import Tpm, read_nv, write_geo_digest
from keypeer.tpm.device import translated
from keypeer.tpm.nv import geo_is_locked, nv_indices
from keypeer.wire.profile import GEO_NV_ATTRIBUTES, GEO_NV_INDEX, GEO_NV_SIZE
from tests.support.swtpm import SwTpm, define_nv

FIRST, SECOND = b"\x01" * 32, b"\x02" * 32


def test_writing_the_same_digest_again_changes_nothing(tpm: Tpm) -> None:
    assert write_geo_digest(tpm, FIRST)
    assert not write_geo_digest(tpm, FIRST)
    assert read_nv(tpm, GEO_NV_INDEX) == FIRST
    assert geo_is_locked(tpm)


def test_another_digest_replaces_the_index(tpm: Tpm) -> None:
    write_geo_digest(tpm, FIRST)
    assert write_geo_digest(tpm, SECOND)
    assert read_nv(tpm, GEO_NV_INDEX) == SECOND
    assert geo_is_locked(tpm)


def test_it_survives_a_reboot_locked(swtpm: SwTpm) -> None:
    with swtpm.open() as tpm:
        write_geo_digest(tpm, FIRST)
    swtpm.reboot()
    with swtpm.open() as tpm:
        assert read_nv(tpm, GEO_NV_INDEX) == FIRST
        assert geo_is_locked(tpm)  # WRITEDEFINE: the lock doesn't end with the boot


def define(tpm: Tpm, attributes: int, size: int = GEO_NV_SIZE) -> Any:
    """The geo index as an interrupted or foreign writer leaves it."""
    from tpm2_pytss import TPM2_ALG, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC

    public = TPMS_NV_PUBLIC(
        nvIndex=GEO_NV_INDEX, nameAlg=TPM2_ALG.SHA256, attributes=TPMA_NV(attributes), dataSize=size
    )
    with translated():
        return tpm.esys.nv_define_space(b"", TPM2B_NV_PUBLIC(nvPublic=public))


def test_an_index_left_unwritten_is_replaced(tpm: Tpm) -> None:
    define(tpm, GEO_NV_ATTRIBUTES)
    assert read_nv(tpm, GEO_NV_INDEX) is None
    assert write_geo_digest(tpm, FIRST)
    assert geo_is_locked(tpm)


def test_an_index_left_unlocked_is_replaced_even_with_the_right_digest(tpm: Tpm) -> None:
    from tpm2_pytss import ESYS_TR

    tpm.esys.nv_write(define(tpm, GEO_NV_ATTRIBUTES), FIRST, auth_handle=ESYS_TR.OWNER)
    assert write_geo_digest(tpm, FIRST)
    assert geo_is_locked(tpm)


def test_an_index_of_another_size_is_replaced(tpm: Tpm) -> None:
    define(tpm, GEO_NV_ATTRIBUTES, size=64)
    assert write_geo_digest(tpm, FIRST)
    assert read_nv(tpm, GEO_NV_INDEX) == FIRST


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1500, 2000])
def test_an_index_is_read_whole(tpm: Tpm, size: int) -> None:
    contents = bytes(number % 251 for number in range(size))
    define_nv(tpm, 0x01800100, contents)
    assert read_nv(tpm, 0x01800100) == contents


def test_no_index_reads_as_none(tpm: Tpm) -> None:
    assert read_nv(tpm, 0x01800100) is None
    assert 0x01800100 not in nv_indices(tpm)


def test_an_index_larger_than_any_certificate_isn_t_read(tpm: Tpm, monkeypatch: pytest.MonkeyPatch) -> None:
    # swtpm's own bound is 2 KB, so ours is lowered.
    monkeypatch.setattr("keypeer.limits.NV_INDEX_BYTES_MAX", 100)
    define_nv(tpm, 0x01800100, bytes(101))
    with pytest.raises(TpmError) as caught:
        read_nv(tpm, 0x01800100)
    assert caught.value.code == "tpm.nv"
