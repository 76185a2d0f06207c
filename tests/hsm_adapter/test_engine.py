"""Healing and bookkeeping that only show from inside: each test runs in an interpreter of its own on a real token."""

from __future__ import annotations

import textwrap

from tests.support import hsm

PREAMBLE = f"""
import os, sys
import msgspec, pkcs11
from pkcs11 import Attribute
from cryptography.hazmat.primitives.asymmetric import rsa
from hsm_adapter import canonical, limits, protocol as p, selftest
from hsm_adapter.engine import Engine
from hsm_adapter.pin import Pin

now = [0.0]
engine = Engine({hsm.MODULE!r}, {hsm.LABEL!r}, lambda: Pin("482915"), clock=lambda: now[0])
engine.start()
token = lambda: engine._state.token
modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n.to_bytes(256, "big")

def run(operation, kind):
    result = engine.execute(operation)
    assert isinstance(result, kind), result
    return result

def open_session(number=1):
    return run(p.OpenSession(bytes([number]) * 16, "fra-1", b"name", modulus, 65537), p.OpenedSession).record

def session_objects():
    return sorted(k.handle for k in token().session.get_objects({{Attribute.TOKEN: False}}))

record = run(p.CreateKey(p.NewKey("vm-1", 1, 64, b"")), p.KeyRecord)
granted = p.Rewrap(record, open_session(), 1, 2_000_000_000, 300)
"""


def inside(token: hsm.SoftToken, code: str) -> None:
    """Run ``code`` after the preamble; its assertions are the test's."""
    output = token.python(PREAMBLE + textwrap.dedent(code) + "\nprint('passed')")
    assert output.endswith("passed\n"), output


def test_a_closed_session_heals_within_the_operation(token: hsm.SoftToken) -> None:
    inside(
        token,
        """
        for operation, kind in ((granted, p.Released), (p.Sign("ca", b"x"), p.Signature), (p.Random(8), p.RandomBytes),
                                (p.CreateKey(p.NewKey("vm-2", 1, 32, b"")), p.KeyRecord)):
            before = token()
            before.session.close()
            run(operation, kind)
            assert token() is not before
        """,
    )


def test_a_finalised_module_heals_within_the_operation(token: hsm.SoftToken) -> None:
    inside(
        token,
        """
        expected = run(granted, p.Released)
        token().library._lib.finalize()
        assert run(granted, p.Released) == expected
        """,
    )


def test_dead_session_keys_are_made_anew_without_reopening(token: hsm.SoftToken) -> None:
    """The canary sings, so only the table of sessions is dropped."""
    inside(
        token,
        """
        expected = run(granted, p.Released)
        before = token()
        (keys,) = engine._state.operations._sessions._open.values()
        before.fast.destroy(keys.key)
        assert run(granted, p.Released) == expected
        assert token() is before
        """,
    )


def test_a_blob_of_another_kek_is_the_operations_fault(token: hsm.SoftToken) -> None:
    """SoftHSM answers CKR_GENERAL_ERROR; the token must not be reopened for it, however often it comes."""
    inside(
        token,
        """
        before = token()
        blob = os.urandom(72)
        text = canonical.key_record_bytes("vm-1", 1, 64, b"", 1, blob)
        forged = msgspec.structs.replace(record, wrapped=blob, mac=before.fast.hmac(before.mac(1), text))
        for _ in range(20):
            error = run(msgspec.structs.replace(granted, record=forged), p.OperationError)
            assert (error.code, error.retryable) == ("hsm.unwrap_failed", False), error
        assert token() is before
        run(granted, p.Released)
        """,
    )


def test_a_token_that_lies_is_never_asked_again(token: hsm.SoftToken) -> None:
    inside(
        token,
        """
        truth, selftest._TEST_MAC = selftest._TEST_MAC, bytes(32)  # the token's right answer is now a wrong one
        now[0] += limits.SELF_TEST_INTERVAL_S
        engine.tick()
        pong = run(p.Ping(), p.Pong)
        assert not pong.healthy
        assert pong.reason == "hsm.self_test_failed: HMAC-SHA-256 gives a wrong answer", pong
        selftest._TEST_MAC = truth
        for _ in range(5):
            now[0] += limits.SELF_TEST_INTERVAL_S
            engine.tick()
            error = run(granted, p.OperationError)
            assert error.code == "hsm.self_test_failed"
        """,
    )


def test_a_generator_that_repeats_itself_fails_the_self_test(token: hsm.SoftToken) -> None:
    inside(
        token,
        """
        class Stuck:
            def generate_random(self, bits):
                return bytes(range(bits // 8))

        class Token:
            session = Stuck()

        try:
            selftest._check_generator(Token())
        except selftest.SelfTestFailed as error:
            assert error.code == "hsm.self_test_failed"
        else:
            raise AssertionError("not noticed")
        selftest._check_generator(token())
        """,
    )


def test_no_transient_key_is_left_behind(token: hsm.SoftToken) -> None:
    """After granted and refused operations alike: copies of KEK and record-mac, two keys of the one open session."""
    inside(
        token,
        """
        run(granted, p.Released)
        before = session_objects()
        assert len(before) == 4, before
        for _ in range(50):
            run(granted, p.Released)
            run(p.CreateKey(p.NewKey("vm-2", 1, 32, b"")), p.KeyRecord)
            open_session(7)
            run(msgspec.structs.replace(granted, record=msgspec.structs.replace(record, vm="vm-2")), p.OperationError)
            run(p.OpenSession(bytes(16), "h", b"n", b"\\x80" + bytes(254) + b"\\x01", 65537), p.OpenedSession)
            assert run(p.SelfTest(), p.SelfTestResult).passed
        assert len(session_objects()) == 4
        """,
    )


def test_open_sessions_are_bounded_and_evicted_in_order_of_use(token: hsm.SoftToken) -> None:
    inside(
        token,
        """
        limits.OPEN_SESSIONS_MAX = 2
        first, second, third = (msgspec.structs.replace(granted, session=open_session(n)) for n in (11, 12, 13))
        sessions = engine._state.operations._sessions
        for operation in (first, second, first, third):
            run(operation, p.Released)
        assert list(sessions._open) == [first.session.session, third.session.session]
        assert len(session_objects()) == 2 + 2 * 2
        run(second, p.Released)
        assert list(sessions._open) == [third.session.session, second.session.session]
        """,
    )


def test_reopening_is_tried_once_a_second(token: hsm.SoftToken) -> None:
    """However many operations ask meanwhile."""
    inside(
        token,
        f"""
        os.rename({str(token.tokens)!r}, {str(token.tokens) + "-away"!r})
        os.mkdir({str(token.tokens)!r})
        attempts = []
        opened, engine._opened = engine._opened, lambda: (attempts.append(now[0]), opened())[1]
        assert not run(p.SelfTest(), p.SelfTestResult).passed
        for _ in range(100):
            assert run(granted, p.OperationError).code == "hsm.token_missing"
        assert attempts == [0.0]
        now[0] += limits.HEAL_BACKOFF_S
        engine.tick()
        run(granted, p.OperationError)
        assert attempts == [0.0, 1.0]
        os.rmdir({str(token.tokens)!r})
        os.rename({str(token.tokens) + "-away"!r}, {str(token.tokens)!r})
        run(granted, p.OperationError)
        now[0] += limits.HEAL_BACKOFF_S
        run(granted, p.Released)
        """,
    )


def test_the_periodic_self_test_finds_a_token_gone_and_back(token: hsm.SoftToken) -> None:
    inside(
        token,
        f"""
        os.rename({str(token.tokens)!r}, {str(token.tokens) + "-away"!r})
        os.mkdir({str(token.tokens)!r})
        engine.tick()
        assert run(p.Ping(), p.Pong).healthy, "not due yet"
        now[0] += limits.SELF_TEST_INTERVAL_S
        assert engine.seconds_until_due() == 0
        engine.tick()
        assert run(p.Ping(), p.Pong).reason.startswith("hsm.token_missing")
        assert engine.seconds_until_due() == limits.HEAL_BACKOFF_S
        os.rmdir({str(token.tokens)!r})
        os.rename({str(token.tokens) + "-away"!r}, {str(token.tokens)!r})
        now[0] += limits.HEAL_BACKOFF_S
        engine.tick()
        assert run(p.Ping(), p.Pong).healthy
        """,
    )


def test_a_token_without_rfc_5649_is_refused(token: hsm.SoftToken) -> None:
    inside(
        token,
        """
        from hsm_adapter import mechanisms
        from hsm_adapter.errors import Unusable
        for offered in (frozenset(), frozenset({0x210B})):  # named, but not there when tried
            try:
                mechanisms.pick_key_wrap(token().fast, offered)
            except Unusable as error:
                assert error.code == "hsm.mechanism_missing"
            else:
                raise AssertionError("picked")
        assert mechanisms.pick_key_wrap(token().fast, frozenset({0x210A}))[0] == "AES_KEY_WRAP_PAD"
        """,
    )


def test_keys_that_could_leave_or_are_there_twice_are_refused(token: hsm.SoftToken) -> None:
    inside(
        token,
        f"""
        from pkcs11 import KeyType
        from hsm_adapter.keys import find_keys, handle_of
        from hsm_adapter.errors import Unusable
        engine.close()
        session = pkcs11.lib({hsm.MODULE!r}).get_token(token_label={hsm.LABEL!r}).open(rw=True, user_pin="482915")

        def refused_with(label, **attributes):
            template = {{Attribute[name]: value for name, value in attributes.items()}}
            key = session.generate_key(KeyType.AES, 256, label=label, store=True, template=template)
            try:
                find_keys(session, handle_of)
            except Unusable as error:
                return error.code
            finally:
                key.destroy()

        assert refused_with("keypeer/kek/2", EXTRACTABLE=True) == "hsm.key_unfit"
        assert refused_with("keypeer/kek/2", SENSITIVE=False) == "hsm.key_unfit"
        assert refused_with("keypeer/kek/1") == "hsm.key_ambiguous"
        assert refused_with("keypeer/kek/x") is None
        assert refused_with("keypeer/kek/02") is None
        """,
    )
