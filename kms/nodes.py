"""What the service's nodes tell each other of their HSM tokens: who is there, and which keys it works with."""

from __future__ import annotations

from collections.abc import Sequence

from kms import limits
from kms.custody.port import Description, VersionedKey
from kms.domain.service_keys import NodeState
from kms.errors import Unavailable
from kms.records import NODES, Records

SIGNING: tuple[VersionedKey, ...] = ("session", "ca", "geo", "appraisal", "audit")


def newest(descriptions: Sequence[Description]) -> dict[str, int]:
    """Of each key the newest version that every worker knows."""
    known = [
        {
            "kek": max(each.kek_versions),
            "record-mac": max(each.mac_key_versions),
            **{name: max(each.signing_versions[name]) for name in SIGNING if each.signing_versions.get(name)},
        }
        for each in descriptions
    ]
    return {name: min(each.get(name, 0) for each in known) for name in known[0]}


async def live(records: Records, now: int) -> dict[str, NodeState]:
    """The nodes that gave a sign of life in the last limits.NODE_LIVE_S, by name."""
    found: dict[str, NodeState] = {}
    for loaded in await records.all(NODES):
        if now - loaded.value.at <= limits.NODE_LIVE_S:
            found[NODES.name(loaded.key)] = loaded.value
    return found


async def check_known(records: Records, now: int, key: VersionedKey, version: int, but: str) -> None:
    """Raises Unavailable ``key.node_behind`` unless every live node except ``but`` works with that version."""
    behind = [
        name
        for name, state in (await live(records, now)).items()
        if name != but and state.versions.get(key, 0) < version
    ]
    if behind:
        raise Unavailable(
            "key.node_behind",
            f"{', '.join(sorted(behind))}: no version {version} of {key} in the HSM token there",
            hint="it is taken up within seconds; if this lasts, copy the token there again (keypeer token clone), or "
            f"stop that node for {limits.NODE_LIVE_S:.0f} s",
        )
