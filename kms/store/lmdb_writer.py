"""How groups of commits reach the LMDB file, and what is answered when they don't. Runs on the writer's thread.

When does a failed transaction leave nothing? LMDB writes and syncs the new pages first and the head that makes them
count last, through a descriptor opened O_DSYNC. A failure before the head (no room, a failed fdatasync) leaves the old
head and the old pages: nothing was applied, whatever became of the new pages. A failure of the head's own write
leaves it open what the disk holds; LMDB then declares the environment dead, and that is how we tell the two apart:
**dead means Unknown, anything else means nothing was applied.** A dead environment is opened anew, and the head in
doubt overwritten by an empty commit: after that, and not before, ``resolve`` knows what a crash can't change.

A full map can't even delete: a deletion writes new pages first, and its audit entry too. So commits that do more than
delete must leave a reserve (limits.LMDB_RESERVE_BYTES), shown by allocating it in a nested transaction that is
thrown away. One small entry alone may use half of it: the log tells what was refused for lack of room.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from http import HTTPStatus

import lmdb

from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.store.group import Result
from kms.store.lmdb_environment import LmdbEnvironment
from kms.store.lmdb_tables import Growth, u64
from kms.store.port import Commit, Unknown

MEND_SPACE = "free disk space, or raise store.map_size_mib while the service is stopped"
PROBE = Commit()  # what health commits; nobody else has use for one that changes nothing
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # disk, quota, RLIMIT_FSIZE


class LmdbWriter:
    """kms.store.group.Write on an environment."""

    def __init__(self, place: LmdbEnvironment) -> None:
        self._place = place
        self.in_doubt = False  # the environment died, and nothing was written since
        self.trouble = ""  # why the last commit failed; empty once one succeeded
        self.wrote_at = 0.0  # CLOCK_MONOTONIC, seconds: when the last one did

    def write(self, take: Callable[[], list[Commit]]) -> list[Result]:
        """One transaction for all that waits once the write lock is ours; in halves when they fail together."""
        if self.in_doubt:
            try:
                self._revive()
            except Unavailable as error:
                return self._refused(take(), error)
        group: list[Commit] = []
        try:
            with self._place.env.begin(write=True) as txn:
                group = take()
                outcomes, growth = self._place.tables.apply(txn, group)
                if any(change is PROBE for change in group):
                    self._fill(txn, b"probe", limits.STORE_PROBE_BYTES)
                if growth is not Growth.MENDS:
                    self._leave_reserve(txn, growth)
        except lmdb.Error as error:
            return self._failed(group or take(), error)
        self.trouble, self.wrote_at = "", time.monotonic()
        return list(outcomes)

    def _leave_reserve(self, txn: lmdb.Transaction[bytes], growth: Growth) -> None:
        """Raises lmdb.MapFullError when ``txn`` would leave less than its share of the reserve."""
        if self._place.map_size - self._place.used() > limits.LMDB_NEAR_END_BYTES:
            return
        with self._place.env.begin(parent=txn, write=True) as trial:
            reserve = self._place.reserve()
            self._fill(trial, b"reserve", reserve if growth is Growth.GROWS else reserve // 2)
            trial.abort()

    def _fill(self, txn: lmdb.Transaction[bytes], name: bytes, size: int) -> None:
        """Takes pages of ``size`` bytes together, one by one as common commits do."""
        page_bytes = self._place.env.stat()["psize"]
        for page in range(size // page_bytes):
            # Over half a page with its key, so that each row takes a page of its own.
            txn.put(name + u64(page), bytes(page_bytes // 2), db=self._place.tables.meta)

    def _failed(self, group: list[Commit], error: lmdb.Error) -> list[Result]:
        if self._place.dead():
            return self._unknown(group, error)
        full = isinstance(error, lmdb.MapFullError) or error.code in _NO_ROOM
        if full and self._place.env.reader_check():  # a killed reader kept old pages from reuse
            return self.write(lambda: group)
        if len(group) > 1:  # none of them was applied; what doesn't fit, or can't be written, must not stop the others
            half = len(group) // 2
            return self.write(lambda: group[:half]) + self.write(lambda: group[half:])
        return self._refused(group, self._full() if full else self._place.unavailable(error))

    def _refused(self, group: list[Commit], error: KeypeerError) -> list[Result]:
        self.trouble = error.detail
        return [type(error)(error.code, error.detail, hint=error.hint, status=error.status) for _ in group]

    def _unknown(self, group: list[Commit], error: lmdb.Error) -> list[Result]:
        self.trouble = f"{self._place.folder}: the head of the store could not be written: {error}"
        self.in_doubt = True
        try:
            self._revive()
        except Unavailable as again:
            self.trouble = again.detail
        return [Unknown(change.op_id) for change in group]

    def _revive(self) -> None:
        """Opens the environment anew and overwrites the head in doubt. Raises Unavailable, and may be tried again."""
        self._place.reopen()
        try:
            with self._place.env.begin(write=True) as txn:
                self._place.tables.apply(txn, [Commit()])
        except lmdb.Error as error:
            raise self._place.unavailable(error) from None
        self.in_doubt = False

    def _full(self) -> Unavailable:
        return Unavailable(
            "store.full",
            f"the store in {self._place.folder} has no room; nothing was changed",
            hint=MEND_SPACE,
            status=HTTPStatus.INSUFFICIENT_STORAGE,
        )
