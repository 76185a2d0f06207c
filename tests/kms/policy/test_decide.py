"""The release decision as a table: one deviation a row, and the reason that names it."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keypeer.wire.messages import (
    FreshRule,
    GeoRule,
    PlatformRule,
    PolicyDocument,
    RuntimeRule,
    TpmRule,
    VmRule,
)
from kms.domain.attestation import AppraisalFacts, BootSummary, Counters, GeoFacts, RuntimeVerdict
from kms.errors import BadRequest
from kms.policy.decide import decide, decide_config
from kms.policy.model import Policy, compile_policy

NOW = 1_800_000_000
DAY = 86_400

DOCUMENT = PolicyDocument(
    geo=GeoRule(countries=("DE", "FR", "NL"), max_tag_age="180d", sources=("survey", "gps")),
    platform=PlatformRule(baselines=("r760",)),
    fresh=FreshRule(evidence="60s", lease="10m", grace="5m"),
)
GEO = GeoFacts("t1", "DE", "Frankfurt", "survey", NOW - DAY, NOW + DAY)
GOOD = AppraisalFacts("fra-1", NOW - 10, ("r760", "other"), GEO, Counters(3, 0), b"\x01" * 32)


def policy(document: PolicyDocument = DOCUMENT) -> Policy:
    return compile_policy("eu", document)


def appraisal(**changes: object) -> AppraisalFacts:
    return msgspec.structs.replace(GOOD, **changes)


def tagged(**changes: object) -> AppraisalFacts:
    return appraisal(geo=msgspec.structs.replace(GEO, **changes))


def test_a_good_appraisal_is_allowed() -> None:
    assert decide(policy(), GOOD, NOW) == ()


@pytest.mark.parametrize(
    ("facts", "expected", "words"),
    [
        (tagged(country="US"), ["geo.country"], "host fra-1 is tagged US"),
        (appraisal(geo=None), ["geo.missing"], "no geo-tag"),
        (tagged(expires_at=NOW), ["geo.expired"], "expired 0 s ago"),
        (tagged(issued_at=NOW - 181 * DAY), ["geo.age"], "s old"),
        (tagged(source="declared"), ["geo.source"], "says declared"),
        (appraisal(baselines=("other",)), ["platform.baseline"], "matches other"),
        (appraisal(baselines=()), ["platform.baseline"], "matches none"),
        (appraisal(appraised_at=NOW - 61), ["fresh.evidence"], "61 s ago"),
        (
            appraisal(
                appraised_at=NOW - 61,
                baselines=(),
                geo=GeoFacts("t", "US", "", "declared", NOW - 181 * DAY, NOW - 1),
            ),
            ["geo.country", "geo.expired", "geo.age", "geo.source", "platform.baseline", "fresh.evidence"],
            "tagged US",
        ),
    ],
)
def test_every_deviation_is_named(facts: AppraisalFacts, expected: list[str], words: str) -> None:
    reasons = decide(policy(), facts, NOW)
    assert [reason.id for reason in reasons] == expected
    assert words in reasons[0].found
    assert all(reason.asked and reason.found and reason.mend for reason in reasons)


def test_the_reason_reads_as_the_design_says() -> None:
    (reason,) = decide(policy(), tagged(country="US"), NOW)
    assert str(reason) == "geo.country: host fra-1 is tagged US; policy eu allows DE, FR, NL"


def test_anywhere_is_said_in_words_and_asks_for_no_tag() -> None:
    anywhere = policy(PolicyDocument(geo=GeoRule(anywhere=True)))
    assert decide(anywhere, appraisal(geo=None), NOW) == ()


BOOT = BootSummary(bytes(32), secure_boot=True, kernel_command_line="quiet")
VIOLATED = RuntimeVerdict("debian12", 9, (("runtime.file", "asked", "found /evil", "mend"),))
DEEP = {
    "secure_boot": PlatformRule(secure_boot=True),
    "drtm": PlatformRule(drtm=True),
    "makers": PlatformRule(tpm=TpmRule(manufacturers=("IFX", "NTC"))),
    "firmware": PlatformRule(tpm=TpmRule(firmware={"IFX": "7.85"})),
}


@pytest.mark.parametrize(
    ("rule", "facts", "expected"),
    [
        ("secure_boot", appraisal(boot=BOOT), []),
        ("secure_boot", appraisal(boot=msgspec.structs.replace(BOOT, secure_boot=False)), ["platform.secure_boot"]),
        ("secure_boot", GOOD, ["platform.secure_boot"]),
        ("drtm", appraisal(drtm=True), []),
        ("drtm", GOOD, ["platform.drtm"]),
        ("makers", appraisal(manufacturer="NTC"), []),
        ("makers", appraisal(manufacturer="STM"), ["tpm.manufacturer"]),
        ("makers", GOOD, ["tpm.manufacturer"]),
        ("firmware", appraisal(manufacturer="IFX", firmware="7.85"), []),
        ("firmware", appraisal(manufacturer="IFX", firmware="8.0"), []),
        ("firmware", appraisal(manufacturer="IFX", firmware="7.9"), ["tpm.firmware"]),
        ("firmware", appraisal(manufacturer="IFX", firmware="7.84"), ["tpm.firmware"]),
        ("firmware", appraisal(manufacturer="STM", firmware="1.0"), []),
        ("firmware", GOOD, ["tpm.firmware"]),
    ],
)
def test_platform_rules(rule: str, facts: AppraisalFacts, expected: list[str]) -> None:
    reasons = decide(policy(msgspec.structs.replace(DOCUMENT, platform=DEEP[rule])), facts, NOW)
    assert [reason.id for reason in reasons] == expected
    assert all(reason.asked and reason.found and reason.mend for reason in reasons)


@pytest.mark.parametrize(
    ("mode", "facts", "expected"),
    [
        ("revoke", appraisal(runtime=(RuntimeVerdict("debian12", 9, ()),)), []),
        ("revoke", appraisal(runtime=(VIOLATED,)), ["runtime.file"]),
        ("report", appraisal(runtime=(VIOLATED,)), []),
        ("revoke", appraisal(runtime=(RuntimeVerdict("other", 9, ()),)), ["runtime.ima"]),
        ("report", GOOD, ["runtime.ima"]),
    ],
)
def test_runtime_rules(mode: Literal["revoke", "report"], facts: AppraisalFacts, expected: list[str]) -> None:
    rule = RuntimeRule(ima="debian12", on_violation=mode)
    reasons = decide(policy(msgspec.structs.replace(DOCUMENT, runtime=rule)), facts, NOW)
    assert [reason.id for reason in reasons] == expected


A, B = b"\xaa" * 32, b"\xbb" * 32


@pytest.mark.parametrize(
    ("rule", "launched", "pinned", "expected"),
    [
        (VmRule(), {}, b"", []),
        (VmRule(config="pinned"), {"web": A}, A, []),
        (VmRule(config="pinned"), {"web": B}, A, ["vm.config.mismatch"]),
        (VmRule(config="pinned"), {"db": A}, A, ["vm.config.unmeasured"]),
        (VmRule(config="pinned"), {"web": A}, b"", ["vm.config.unpinned"]),
        (VmRule(config="approved-set", approved=(A.hex(), B.hex())), {"web": B}, b"", []),
        (VmRule(config="approved-set", approved=(A.hex(),)), {"web": B}, B, ["vm.config.mismatch"]),
    ],
)
def test_configuration_rules(rule: VmRule, launched: dict[str, bytes], pinned: bytes, expected: list[str]) -> None:
    compiled = policy(msgspec.structs.replace(DOCUMENT, vm=rule))
    reasons = decide_config(compiled, "web", "fra-1", launched, pinned)
    assert [reason.id for reason in reasons] == expected


@given(country=st.from_regex(r"\A[A-Z]{2}\Z"))
def test_a_country_is_allowed_exactly_when_it_is_listed(country: str) -> None:
    allowed = not decide(policy(), tagged(country=country), NOW)
    assert allowed == (country in {"DE", "FR", "NL"})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (PolicyDocument(geo=GeoRule()), "geo.countries is empty"),
        (PolicyDocument(geo=GeoRule(countries=("DE",), anywhere=True)), "says anywhere"),
        (PolicyDocument(geo=GeoRule(countries=("DE",), sources=())), "geo.sources is empty"),
        (PolicyDocument(geo=GeoRule(countries=("DE",), max_tag_age="forever")), "geo.max_tag_age is 'forever'"),
        (PolicyDocument(geo=GeoRule(countries=("DE",), max_tag_age="9999999d")), "geo.max_tag_age is 9999999d"),
        (PolicyDocument(geo=GeoRule(anywhere=True), fresh=FreshRule(lease="0s")), "fresh.lease is '0s'"),
        (PolicyDocument(geo=GeoRule(anywhere=True), fresh=FreshRule(evidence="60")), "fresh.evidence is '60'"),
        (PolicyDocument(geo=GeoRule(anywhere=True), fresh=FreshRule(grace="8d")), "fresh.grace is 8d"),
        (PolicyDocument(geo=GeoRule(anywhere=True), vm=VmRule(config="approved-set")), "vm.approved is empty"),
        (PolicyDocument(geo=GeoRule(anywhere=True), vm=VmRule(approved=("aa" * 32,))), "vm.approved stands beside"),
    ],
)
def test_a_wrong_policy_is_refused_by_the_key(document: PolicyDocument, words: str) -> None:
    with pytest.raises(BadRequest, match=r"policy\.invalid") as caught:
        compile_policy("eu", document)
    assert words in caught.value.detail


def test_durations() -> None:
    ready = policy()
    assert (ready.max_tag_age, ready.max_evidence_age, ready.lease, ready.grace) == (180 * DAY, 60, 600, 300)
