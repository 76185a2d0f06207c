"""The audit log's head as the token remembers it: a private data object ``keypeer/anchor``, u64 size ‖ 32-byte root.

A new value is a new object, and the old ones are destroyed after it is there: whoever is killed in between leaves both,
and the larger size counts. So a head never goes back by accident; ``force`` ends with the old ones gone, or not done.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import pkcs11
from pkcs11 import Attribute, ObjectClass

from hsm_adapter import protocol as p
from hsm_adapter.errors import BadRequest
from hsm_adapter.translate import translated

LABEL: Final = "keypeer/anchor"
_SEARCHES_MAX: Final = 4
_SIZE_BYTES: Final = 8
_ROOT_BYTES: Final = 32
_NEVER: Final = p.Anchor(0, bytes(_ROOT_BYTES))


def read_anchor(session: pkcs11.Session) -> p.Anchor:
    """The largest head that the token has."""
    return _largest(_heads(session))


def write_anchor(session: pkcs11.Session, wanted: p.Anchor, *, force: bool) -> p.Anchor:
    """Has the token remember ``wanted``; ``session`` may write. Raises BadRequest for one that is smaller than what it
    remembers, or of the same size and another root."""
    old = _heads(session)
    known = _largest(old)
    if known == wanted and len(old) == 1:
        return wanted
    if not force and (wanted.size < known.size or (wanted.size == known.size and known not in (wanted, _NEVER))):
        raise BadRequest(f"the token remembers a log of {known.size} entries; {wanted.size} would go back")
    with translated("C_CreateObject"):
        session.create_object(
            {
                Attribute.CLASS: ObjectClass.DATA,
                Attribute.TOKEN: True,
                Attribute.PRIVATE: True,
                Attribute.LABEL: LABEL,
                Attribute.VALUE: wanted.size.to_bytes(_SIZE_BYTES, "big") + wanted.root,
            }
        )
    with translated("C_DestroyObject"):
        for found, _ in old:
            found.destroy()
    return wanted


def _heads(session: pkcs11.Session) -> list[tuple[pkcs11.Object, p.Anchor]]:
    """Searched again when there is none, or one that another worker destroyed: then its newer one is there."""
    search = {Attribute.CLASS: ObjectClass.DATA, Attribute.LABEL: LABEL, Attribute.TOKEN: True}
    with translated("C_FindObjects"):
        for _ in range(_SEARCHES_MAX - 1):
            with suppress(pkcs11.ObjectHandleInvalid):
                if heads := [(found, _decode(found)) for found in session.get_objects(search)]:
                    return heads
        return [(found, _decode(found)) for found in session.get_objects(search)]


def _largest(heads: Sequence[tuple[pkcs11.Object, p.Anchor]]) -> p.Anchor:
    return max((anchor for _, anchor in heads), key=lambda anchor: anchor.size, default=_NEVER)


def _decode(found: pkcs11.Object) -> p.Anchor:
    """What a killed writer left without its value counts for nothing."""
    try:
        value = bytes(found[Attribute.VALUE])
    except pkcs11.AttributeTypeInvalid:
        return _NEVER
    if len(value) != _SIZE_BYTES + _ROOT_BYTES:
        return _NEVER
    return p.Anchor(int.from_bytes(value[:_SIZE_BYTES], "big"), value[_SIZE_BYTES:])
