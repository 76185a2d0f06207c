"""kill -9 between any two calls that change the token: the next worker serves, and what was asked for can be had.

Each death is a process of its own (tests.support.hsm.DIE_BEFORE). Inside a call it is the module's own affair;
test_concurrency kills there at random.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.hsm_adapter.test_backups import pem_of
from tests.support import hsm

PREAMBLE = f"""
import json, os, signal, sys
import sys
from pathlib import Path
import msgspec
from hsm_adapter import cryptoki, protocol as p
from hsm_adapter.engine import Engine
from hsm_adapter.pin import Pin

HOME = Path(os.environ["SOFTHSM2_CONF"]).parent
{hsm.DIE_BEFORE}
def run(operation, kind):
    result = engine.execute(operation)
    assert isinstance(result, kind), result
    return result

engine = Engine({hsm.MODULE!r}, {hsm.LABEL!r}, lambda: Pin("482915"), lock=HOME / "lock")
engine.start()
assert run(p.Ping(), p.Pong).healthy, engine.execute(p.Ping())
records = HOME / "record"
if not records.exists():
    records.write_bytes(msgspec.msgpack.encode(run(p.CreateKey(p.NewKey("vm-1", 1, 64, b"")), p.KeyRecord)))
record = msgspec.msgpack.decode(records.read_bytes(), type=p.KeyRecord)
"""
DIED = -9
MOST = 40  # calls that change objects, in any one operation here


def deaths(token: hsm.SoftToken, code: str) -> int:
    """Runs ``code`` on the token, dying before the first changing call that it makes, then the second and so on, until
    one run ends alive → how many died."""
    for number in range(1, MOST):
        done = token.run(sys.executable, "-c", PREAMBLE + code.replace("NUMBER", str(number)))
        if done.returncode == DIED:
            continue
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("passed\n")
        return number - 1
    raise AssertionError("it never ended alive")


@pytest.fixture(params=[False, True], ids=["plain", "backed up"])
def any_token(request: pytest.FixtureRequest, tmp_path: Path) -> hsm.SoftToken:
    """With and without a recovery key."""
    token = hsm.fresh_token(tmp_path / "token")
    if request.param:
        (tmp_path / "recovery.pem").write_bytes(pem_of(rsa.generate_private_key(65537, 3072)))
        token.provision("--recovery", str(tmp_path / "recovery.pem"))
    return token


@pytest.mark.parametrize("name", ["kek", "record-mac", "geo"])
def test_making_a_version(any_token: hsm.SoftToken, name: str) -> None:
    died = deaths(
        any_token,
        f"""
run(p.RewrapKek(record), p.KeyRecord)  # under whatever versions the dead left
assert run(p.SelfTest(), p.SelfTestResult).passed
next = max(engine._state.token.keys.versions({name!r})) + 1
die_before(engine._library.module, NUMBER)
assert run(p.MakeVersion({name!r}, next), p.MadeVersion).made
assert not run(p.MakeVersion({name!r}, next), p.MadeVersion).made
moved = run(p.RewrapKek(record), p.KeyRecord)
assert run(p.RewrapKek(moved), p.KeyRecord) == moved
assert not list(engine._state.token.session.get_objects({{3: "keypeer/new"}})), "what the dead left is cleared away"
print("passed")
""",
    )
    assert died >= 2


@pytest.mark.parametrize("name", ["kek", "geo"])
def test_destroying_a_version(token: hsm.SoftToken, name: str) -> None:
    died = deaths(
        token,
        f"""
versions = engine._state.token.keys.versions({name!r})
if set(versions) == {{1}}:
    run(p.MakeVersion({name!r}, 2), p.MadeVersion)
    moved = run(p.RewrapKek(record), p.KeyRecord)
    records.write_bytes(msgspec.msgpack.encode(moved))
    record = moved
die_before(engine._library.module, NUMBER)
run(p.DestroyVersion({name!r}, 1), p.Destroyed)
assert set(engine._state.token.keys.versions({name!r})) == {{2}}
assert not list(engine._state.token.session.get_objects({{3: "keypeer/" + {name!r}}})), "half a pair"
assert run(p.RewrapKek(record), p.KeyRecord) == record
assert run(p.SelfTest(), p.SelfTestResult).passed
print("passed")
""",
    )
    assert died >= 1


@pytest.mark.parametrize("force", [False, True], ids=["forward", "forced back"])
def test_writing_the_anchor(token: hsm.SoftToken, force: bool) -> None:
    old, new = (9, 4) if force else (4, 9)
    died = deaths(
        token,
        f"""
OLD, NEW = p.Anchor({old}, bytes(32)), p.Anchor({new}, bytes([1]) * 32)
anchor = run(p.ReadAnchor(), p.Anchor)
if anchor.size == 0:
    anchor = run(p.WriteAnchor(OLD.size, OLD.root), p.Anchor)
assert anchor in (OLD, NEW), anchor
if anchor == NEW:
    assert run(p.WriteAnchor(OLD.size, OLD.root, True), p.Anchor) == OLD
die_before(engine._library.module, NUMBER)
assert run(p.WriteAnchor(NEW.size, NEW.root, {force}), p.Anchor) == NEW
assert run(p.ReadAnchor(), p.Anchor) == NEW
print("passed")
""",
    )
    assert died >= 2
