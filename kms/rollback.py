"""Whether the store is the one that the HSM token saw last.

The token remembers a head of the audit log (its anchor). A store whose log is shorter than that, or doesn't begin with
it, is an old copy or another's: until officers accept it, nothing is decided or changed on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from kms.custody.port import Anchor, Custody
from kms.errors import Unavailable
from kms.store.port import LogHead, Store
from kms.tree import root_at


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What the token remembers, and what the store has."""

    anchor: Anchor
    head: LogHead

    def error(self) -> Unavailable:
        """For whoever asks for a decision or a change."""
        lost = self.anchor.size - self.head.size
        how = f"{lost} entries fewer than" if lost > 0 else "another beginning than"
        return Unavailable(
            "store.rolled_back",
            f"the store's audit log has {how} the {self.anchor.size} that the HSM token remembers: an old or a foreign "
            "database was put in the service's place",
            hint="put the newest database back; or officers accept this one: keypeer rollback accept",
        )


class RollbackGuard:
    """Asked before every commit. Looks again only while something is wrong, so that it costs nothing; ``trouble`` is
    None once the store was found to be the right one."""

    def __init__(self, store: Store, custody: Custody) -> None:
        self._store = store
        self._custody = custody
        self.trouble: RolledBack | None = None

    async def look(self) -> RolledBack | None:
        """Compares token and store now."""
        anchor, head = await self._custody.read_anchor(), await self._store.log_head()
        good = anchor.size <= head.size and (not anchor.size or await root_at(self._store, anchor.size) == anchor.root)
        self.trouble = None if good else RolledBack(anchor, head)
        return self.trouble

    async def refuse(self) -> None:
        """Raises ``store.rolled_back`` while the store isn't the one that the token knows."""
        if self.trouble is not None and (trouble := await self.look()) is not None:
            raise trouble.error()
