"""Whether store and HSM token belong together, and the store is the one that the token saw last.

The token remembers a head of the audit log (its anchor). A store whose log is shorter than that, or doesn't begin with
it, is an old copy or another's: until officers accept it, nothing is decided or changed on it. A token whose record MAC
didn't seal the store's own name is another token, whatever its label says; nobody can accept that.
"""

from __future__ import annotations

from dataclasses import dataclass

from kms.custody.port import Anchor, Custody
from kms.errors import Unavailable
from kms.records import LOG, Records
from kms.store.port import LogHead, Store
from kms.tree import root_at

_OTHER_KEYS = ("store.tampered", "hsm.key_missing")


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


@dataclass(frozen=True, slots=True)
class OtherToken:
    """The store was sealed by another token."""

    found: str

    def error(self) -> Unavailable:
        """For whoever asks for a decision or a change."""
        return Unavailable(
            "hsm.other_token",
            f"the HSM token holds other keys than the one that this store was sealed with ({self.found})",
            hint="put the service's own token back, or restore its keys: keypeer restore --break-glass",
        )


class RollbackGuard:
    """Asked before every commit. Looks again only while something is wrong, so that it costs nothing; ``trouble`` is
    None once the store was found to be the right one."""

    def __init__(self, store: Store, custody: Custody, records: Records) -> None:
        self._store = store
        self._custody = custody
        self._records = records
        self.trouble: RolledBack | OtherToken | None = None

    async def look(self) -> RolledBack | OtherToken | None:
        """Compares token and store now."""
        try:
            await self._records.load(LOG, "identity")
        except Unavailable as error:
            if error.code not in _OTHER_KEYS:
                raise
            self.trouble = OtherToken(error.code)
            return self.trouble
        anchor, head = await self._custody.read_anchor(), await self._store.log_head()
        good = anchor.size <= head.size and (not anchor.size or await root_at(self._store, anchor.size) == anchor.root)
        self.trouble = None if good else RolledBack(anchor, head)
        return self.trouble

    async def refuse(self) -> None:
        """Raises ``store.rolled_back`` while the store isn't the one that the token knows."""
        if self.trouble is not None and (trouble := await self.look()) is not None:
            raise trouble.error()
