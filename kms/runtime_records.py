"""Runtime policies in the store: a sealed record each, and the document that it names by its digest."""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections import OrderedDict

import msgspec

from keypeer.wire.runtime import RuntimePolicy
from kms import limits
from kms.domain import policies
from kms.errors import Unavailable
from kms.evidence.ima.policy import CompiledRuntime
from kms.records import RUNTIME_POLICIES, Loaded, Records, tampered
from kms.store.port import Store

_encode = msgspec.msgpack.Encoder().encode
_runtime = msgspec.msgpack.Decoder(RuntimePolicy)


def runtime_document_key(sha256: bytes) -> bytes:
    """Where a runtime policy's packed document stands. It needs no seal: the sealed record names its digest."""
    return b"runtime-document/" + sha256.hex().encode()


def pack_runtime(document: RuntimePolicy) -> bytes:
    """A runtime policy's document: msgpack, deflated (RFC 1950). Digests don't shrink, the paths beside them do."""
    return zlib.compress(_encode(document), 1)


async def load_runtime_document(store: Store, stored: policies.StoredRuntimePolicy) -> RuntimePolicy:
    """The document that ``stored`` names; raises ``store.tampered`` for another one."""
    key = runtime_document_key(stored.sha256)
    item = await store.get(key)
    if item is None or not hmac.compare_digest(hashlib.sha256(item.value).digest(), stored.sha256):
        raise tampered(key)
    return _runtime.decode(zlib.decompress(item.value))


class RuntimePolicies:
    """The runtime policies in force, freshly read; each compiled once for its document's digest, which every worker
    finds in the record."""

    def __init__(self, store: Store, records: Records) -> None:
        self._store = store
        self._records = records
        self._compiled: OrderedDict[tuple[str, bytes], CompiledRuntime] = OrderedDict()

    async def load(self) -> tuple[Loaded[CompiledRuntime], ...]:
        """All of them, in the order of their names."""
        try:
            return await self._load()
        except Unavailable:  # a document that was replaced between the two reads
            return await self._load()

    async def _load(self) -> tuple[Loaded[CompiledRuntime], ...]:
        stored = await self._records.page(RUNTIME_POLICIES, "", limits.RUNTIME_POLICIES_MAX)
        return tuple([Loaded(each.key, await self._ready(each.value), each.version) for each in stored])

    async def _ready(self, stored: policies.StoredRuntimePolicy) -> CompiledRuntime:
        key = (stored.name, stored.sha256)
        ready = self._compiled.get(key)
        if ready is None:
            ready = CompiledRuntime(stored.name, await load_runtime_document(self._store, stored))
            self._compiled[key] = ready
            while len(self._compiled) > 2 * limits.RUNTIME_POLICIES_MAX:
                self._compiled.popitem(last=False)
        return ready
