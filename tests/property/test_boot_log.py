"""Any bytes: a boot log is malformed or judged, and only the honest bytes fit the honest quote."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import EvidenceError
from kms.evidence.boot.appraise import check_boot
from kms.evidence.boot.bound import bound_grub_text, bound_utf16, is_bound
from kms.evidence.boot.constants import LOG_PCRS
from kms.evidence.boot.parse import Event
from kms.evidence.boot.uefi import exact, parse_gpt, parse_image_load, parse_signatures, parse_variable
from kms.evidence.model import Findings
from kms.tpm.constants import SHA256
from tests.property.boot_log_target import holds_for
from tests.support.boot_log import BootLog, boot_log, event_bytes, spec_id_event

HONEST = boot_log(uki=True, banks=["sha256"])
LOG = HONEST.bytes()
OWN = {pcr: value for pcr, value in HONEST.pcrs("sha256").items() if pcr in LOG_PCRS}


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """The honest log with a few bytes replaced, cut out, doubled or added."""
    data = LOG
    for _ in range(draw(st.integers(1, 3))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 40))
        data = data[:at] + draw(st.one_of(st.binary(max_size=8), st.just(data[at : at + size] * 2))) + data[at + size :]
    return data


@st.composite
def logs(draw: st.DrawFn) -> bytes:
    """Logs of arbitrary events: well-formed outside, anything inside."""
    log = BootLog(["sha256"])
    kinds = st.one_of(st.sampled_from([entry.kind for entry in HONEST.entries]), st.integers(0, 2**32 - 1))
    data = st.one_of(st.sampled_from([entry.data for entry in HONEST.entries]), st.binary(max_size=120))
    for pcr, kind, contents in draw(st.lists(st.tuples(st.integers(0, 23), kinds, data), max_size=12)):
        log.add(pcr, kind, contents)
    return log.bytes()


@given(data=st.one_of(st.binary(max_size=400), mutations(), logs()))
@settings(max_examples=600, deadline=None)
def test_any_bytes_are_malformed_or_judged(data: bytes) -> None:
    assert holds_for(data) in {True, False}


def test_the_honest_log_is_judged() -> None:
    assert holds_for(LOG)


@given(data=mutations().filter(lambda data: data != LOG))
@settings(max_examples=300, deadline=None)
def test_no_mutated_log_says_anything_new_about_the_honest_quote(data: bytes) -> None:
    """What a mutated log may still change are claims, and data of PCRs whose events aren't read as facts."""
    honest = check_boot(Findings("h"), LOG, "sha256", OWN)
    assert honest is not None
    try:
        facts = check_boot(Findings("h"), data, "sha256", OWN)
    except EvidenceError:
        return
    if facts is not None and facts.secure_boot is not None and honest.secure_boot is not None:
        assert facts.secure_boot.enabled == honest.secure_boot.enabled
        assert (facts.secure_boot.db, facts.secure_boot.dbx) == (honest.secure_boot.db, honest.secure_boot.dbx)
        assert [each.digest for each in facts.applications] == [each.digest for each in honest.applications]
        assert set(facts.kernel_command_lines) <= set(honest.kernel_command_lines)
        assert set(facts.grub_commands) <= set(honest.grub_commands)


@given(data=st.binary(max_size=200), digest=st.binary(min_size=32, max_size=32))
def test_data_with_another_digest_is_never_bound(data: bytes, digest: bytes) -> None:
    for prefix in (b"", b"grub_cmd: ", b"kernel_cmdline: "):
        event = Event(1, 8, 13, {"sha256": digest}, prefix + data)
        assert not is_bound(event, SHA256)
        assert bound_grub_text(event, SHA256) is None
        assert bound_utf16(event, SHA256) is None


@given(data=st.binary(max_size=300))
@settings(max_examples=300)
def test_uefi_parsers_raise_only_evidence_errors(data: bytes) -> None:
    for parse in (parse_variable, parse_signatures, parse_image_load, parse_gpt):
        outcome: object
        try:
            outcome = parse(data)
        except EvidenceError as error:
            outcome = error.code
        assert outcome is not None


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)


@given(one=TEXTS, other=TEXTS)
@settings(max_examples=500)
def test_shown_texts_are_printable_and_never_merged(one: str, other: str) -> None:
    assert exact(one).isprintable()
    assert (exact(one) == exact(other)) == (one == other)


@given(data=st.binary(max_size=600))
def test_bytes_behind_a_header_are_judged(data: bytes) -> None:
    assert holds_for(spec_id_event(["sha256"]) + data) in {True, False}


def test_thousands_of_events_are_judged() -> None:
    entry = HONEST.entries[-1]
    assert holds_for(LOG + event_bytes(entry, ["sha256"]) * 8000)
