"""Connecting to a TPM, what it leaves behind, and its errors in words."""

from __future__ import annotations

import pytest

from keypeer.errors import TpmError
from keypeer.tpm import Tpm, pcr_extend, pcr_read, write_geo_digest
from keypeer.tpm.binding import BindingBlob, create_binding_key, loaded_binding_key, storage_key
from keypeer.tpm.device import translated
from keypeer.wire.profile import GEO_NV_INDEX
from tests.support.swtpm import SwTpm, running_swtpm


def test_no_tpm_is_unavailable(swtpm: SwTpm) -> None:
    swtpm.stop()
    with pytest.raises(TpmError) as caught:
        swtpm.open()
    assert caught.value.code == "tpm.unavailable"
    assert "may this user open it" in caught.value.hint


@pytest.mark.parametrize("tcti", ["", "nonsense:x", "device:/dev/keypeer-has-no-such-device"])
def test_a_wrong_tcti_is_unavailable(tcti: str) -> None:
    with pytest.raises(TpmError) as caught:
        Tpm.open(tcti)
    assert caught.value.code == "tpm.unavailable"


def test_a_tpm_that_goes_away_is_unavailable(swtpm: SwTpm) -> None:
    tpm = swtpm.open()
    swtpm.stop()
    with pytest.raises(TpmError) as caught:
        pcr_read(tpm, "sha256", [0])
    assert caught.value.code == "tpm.unavailable"
    tpm.close()


def test_what_a_killed_process_left_loaded_is_flushed(swtpm: SwTpm) -> None:
    from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2_SE, TPM2B_SENSITIVE_CREATE, TPMT_SYM_DEF

    for _ in range(4):  # a TPM has three transient slots, and three loaded sessions
        tpm = swtpm.open()
        with translated():
            tpm.esys.create_primary(TPM2B_SENSITIVE_CREATE(), "ecc256:aes128cfb")
            no_cipher = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
            tpm.esys.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, no_cipher, TPM2_ALG.SHA256)
            assert len(tpm.handles(0x80000000)) == 1
        tpm.close()  # neither is flushed


def test_another_tpms_blob_is_told_by_its_integrity(tpm: Tpm) -> None:
    with running_swtpm() as other, other.open() as elsewhere:
        blob = create_binding_key(elsewhere, bytes(32))
    with storage_key(tpm) as parent, pytest.raises(TpmError) as caught, loaded_binding_key(tpm, parent, blob):
        pass
    assert caught.value.code == "tpm.integrity"
    assert tpm.handles(0x80000000) == []


def test_a_blob_cut_short_is_told(tpm: Tpm) -> None:
    blob = create_binding_key(tpm, bytes(32))
    cut = BindingBlob(blob.public, blob.private[:-9])
    with storage_key(tpm) as parent, pytest.raises(TpmError) as caught, loaded_binding_key(tpm, parent, cut):
        pass
    assert caught.value.code == "tpm.blob"


def test_a_locked_index_can_t_be_written_again(tpm: Tpm) -> None:
    from tpm2_pytss import ESYS_TR

    write_geo_digest(tpm, bytes(32))
    with pytest.raises(TpmError) as caught, translated():
        tpm.esys.nv_write(tpm.esys.tr_from_tpmpublic(GEO_NV_INDEX), b"x" * 32, auth_handle=ESYS_TR.OWNER)
    assert caught.value.code == "tpm.nv_locked"


def test_an_owner_password_is_told(tpm: Tpm) -> None:
    from tpm2_pytss import ESYS_TR

    with translated():
        tpm.esys.hierarchy_change_auth(ESYS_TR.OWNER, b"secret")
    tpm.esys.tr_set_auth(ESYS_TR.OWNER, b"")
    with pytest.raises(TpmError) as caught:
        write_geo_digest(tpm, bytes(32))
    assert caught.value.code == "tpm.auth"
    assert "empty password" in caught.value.hint
    assert "secret" not in str(caught.value)


def test_a_digest_of_the_wrong_size_isn_t_extended(tpm: Tpm) -> None:
    with pytest.raises(TpmError) as caught:
        pcr_extend(tpm, "sha256", 4, bytes(20))
    assert caught.value.code == "tpm.digest"
    assert pcr_read(tpm, "sha256", [4]) == {4: bytes(32)}
