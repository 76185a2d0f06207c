"""Which limit a call counts against, whose bucket it is, and what the refusal says."""

from __future__ import annotations

import hashlib

import pytest

from kms.pki import CertifiedIdentity
from kms.rates import Rate
from kms.setting_tables import LimitsSettings
from kms.web.limiter import LIMITS, Limiter
from kms.web.routing import Route
from kms.web.server import ROUTES

BY_PATH = {(route.method, route.path): route for route in ROUTES}
RELEASE, BATCH = BY_PATH["POST", "/v1/vms/{vm}/key/release"], BY_PATH["POST", "/v1/releases"]
ATTEST, ENROL = BY_PATH["POST", "/v1/attestations"], BY_PATH["POST", "/v1/enrolments"]
READY, CREATE = BY_PATH["GET", "/readyz"], BY_PATH["POST", "/v1/vms"]


def identity(name: str = "h1", role: str = "host", certificate: bytes = b"1") -> CertifiedIdentity:
    return CertifiedIdentity(role, name, 0, 1, hashlib.sha256(certificate).digest())  # type: ignore[arg-type]  # a table's


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def limiter(rate: float = 1, burst: float = 2, workers: int = 1) -> tuple[Limiter, Clock]:
    clock = Clock()
    return Limiter({name: Rate(rate, burst) for name in LIMITS}, workers, clock), clock


def passed(
    one: Limiter, route: Route, who: CertifiedIdentity | None, address: str = "192.0.2.1", calls: int = 9
) -> int:
    return sum(one.refusal(route, who, address) is None for _ in range(calls))


def test_every_route_has_a_limit() -> None:
    assert {route.rate for route in ROUTES} == {*LIMITS, "health"} - {"anonymous"}
    assert all(route.roles is None for route in ROUTES if route.rate == "health")


def test_settings_and_limits_have_the_same_names() -> None:
    assert set(LimitsSettings.__struct_fields__) == set(LIMITS)


@pytest.mark.parametrize("other", [ATTEST, CREATE])
def test_limits_are_apart(other: Route) -> None:
    one, _ = limiter()
    assert passed(one, RELEASE, identity()) == 2
    assert passed(one, BATCH, identity()) == 0
    assert passed(one, other, identity()) == 2


def test_callers_are_apart_by_their_certificate() -> None:
    one, _ = limiter()
    assert passed(one, RELEASE, identity()) == 2
    assert passed(one, RELEASE, identity("h2", certificate=b"2")) == 2
    assert passed(one, RELEASE, identity(certificate=b"newer")) == 2


def test_without_a_certificate_an_address_is_the_caller_and_probes_are_apart() -> None:
    one, _ = limiter()
    assert passed(one, ENROL, None) == 2
    assert passed(one, READY, None) == 2
    assert passed(one, RELEASE, None) == 0
    assert passed(one, ENROL, None, "192.0.2.2") == 2


def test_workers_share_the_rate_and_each_has_the_burst() -> None:
    one, clock = limiter(rate=4, burst=10, workers=2)
    assert passed(one, RELEASE, identity(), calls=20) == 10
    clock.now = 3.0
    assert passed(one, RELEASE, identity(), calls=20) == 6


def test_a_fleet_s_worst_day_is_within_the_defaults() -> None:
    settings = LimitsSettings()
    rates = {name: Rate(getattr(settings, name).rate, getattr(settings, name).burst) for name in LIMITS}
    one, clock = Limiter(rates, workers=4), Clock()
    assert all(one.refusal(BATCH, identity(), "192.0.2.1", 10_000) is None for _ in range(10))
    assert all(one.refusal(RELEASE, identity("h2", certificate=b"2"), "", 1) is None for _ in range(10_000))
    assert clock.now == 0.0


def test_the_refusal_tells_which_limit_what_was_found_and_how_to_mend_it() -> None:
    one, clock = limiter(rate=2, burst=10)
    assert one.refusal(BATCH, identity(), "", 10) is None
    clock.now = 0.5
    error = one.refusal(BATCH, identity(), "", 7)
    assert error is not None
    assert (error.code, error.status, error.retry_after) == ("rate.limited", 429, 3)
    (reason,) = error.reasons
    assert reason.id == "rate.releases"
    assert "2/s" in reason.asked
    assert "host h1 asked for 7 more" in reason.found
    assert "limits.releases" in reason.mend
    clock.now += error.retry_after
    assert one.refusal(BATCH, identity(), "", 7) is None
