"""The sessions whose keys this worker holds open: a bounded, least-recently-used table of handles."""

from __future__ import annotations

from collections import OrderedDict
from hmac import compare_digest
from typing import NamedTuple

from hsm_adapter import canonical, limits, mechanisms
from hsm_adapter.cryptoki import Mechanism
from hsm_adapter.errors import HsmError, RecordTampered
from hsm_adapter.protocol import SessionRecord
from hsm_adapter.token import Token


class SessionKeys(NamedTuple):
    """A record that was verified, and the handles of its two keys, which can't leave the token."""

    record: SessionRecord
    key: int
    mac_key: int


class Sessions:
    """Opens session records on ``token`` and keeps OPEN_SESSIONS_MAX of them."""

    def __init__(self, token: Token, key_wrap: Mechanism) -> None:
        self._token = token
        self._key_wrap = key_wrap
        self._open: OrderedDict[bytes, SessionKeys] = OrderedDict()  # by session id, least recently used first

    def keys_of(self, record: SessionRecord) -> SessionKeys:
        """The session's handles. Raises RecordTampered, or what the token says.

        A record equal to one that was verified, MAC included, isn't verified again.
        """
        keys = self._open.get(record.session)
        if keys is not None and keys.record == record:
            self._open.move_to_end(record.session)
            return keys
        keys = self._load(record)
        self._drop(record.session)
        self._open[record.session] = keys
        if len(self._open) > limits.OPEN_SESSIONS_MAX:
            self._drop(next(iter(self._open)))
        return keys

    def clear(self) -> None:
        """Drop all handles; each session's keys are unwrapped anew when next asked for."""
        for session in list(self._open):
            self._drop(session)

    def __len__(self) -> int:
        return len(self._open)

    def _load(self, record: SessionRecord) -> SessionKeys:
        fast = self._token.fast
        if not compare_digest(fast.hmac(self._token.mac(record.mac_key), session_bytes(record)), record.mac):
            raise RecordTampered("the session record")
        kek = self._token.kek(record.kek)
        key = fast.unwrap(self._key_wrap, kek, record.wrapped_key, mechanisms.UNWRAP_SESSION_KEY)
        try:
            mac_key = fast.unwrap(self._key_wrap, kek, record.wrapped_mac_key, mechanisms.UNWRAP_SESSION_MAC_KEY)
        except HsmError:
            fast.destroy_all(key)
            raise
        return SessionKeys(record, key, mac_key)

    def _drop(self, session: bytes) -> None:
        keys = self._open.pop(session, None)
        if keys is not None:
            self._token.fast.destroy_all(keys.key, keys.mac_key)


def session_bytes(record: SessionRecord) -> bytes:
    """What the record's MAC covers."""
    return canonical.session_bytes(
        record.session, record.host, record.binding_name, record.kek, record.wrapped_key, record.wrapped_mac_key
    )
