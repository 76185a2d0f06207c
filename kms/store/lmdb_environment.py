"""The open LMDB environment that reads and the writer share, and what is known of its room."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb

from kms import limits
from kms.errors import Unavailable
from kms.store.lmdb_tables import Tables


class LmdbEnvironment:
    """One environment in ``folder``; its map of ``map_size`` bytes is never resized, since that has corrupted
    databases which several processes had open. Raises Unavailable ``store.unavailable`` and ``store.schema``."""

    def __init__(self, folder: Path, map_size: int) -> None:
        self.folder = folder
        self.map_size = map_size
        # Between reads, which run on the event loop's thread, and the writer's reopening.
        self._lock = threading.Lock()
        self.env, self.tables = self._open()
        self.map_size = self.env.info()["map_size"]  # larger when the store already was

    def _open(self) -> tuple[lmdb.Environment, Tables]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            environment = lmdb.open(
                str(self.folder),
                map_size=self.map_size,
                max_dbs=8,
                max_readers=limits.LMDB_READERS_MAX,
                max_spare_txns=limits.LMDB_SPARE_READS,
                mode=0o600,
                metasync=True,
                sync=True,
            )
        except (lmdb.Error, OSError) as error:
            raise self.unavailable(error) from None
        try:
            environment.reader_check()  # frees the slots of killed processes, which would keep old pages from reuse
            tables = Tables(environment)
            for folder in (self.folder, self.folder.parent):
                _sync_folder(folder)
            return environment, tables
        except (lmdb.Error, OSError) as error:
            environment.close()
            raise self.unavailable(error) from None
        except Unavailable:
            environment.close()
            raise

    @contextmanager
    def snapshot(self) -> Iterator[tuple[lmdb.Transaction[bytes], Tables]]:
        """A read of one moment: the newest that is durable, whichever process wrote it. Keep it short."""
        with self._lock:
            try:
                with self.env.begin() as txn:
                    yield txn, self.tables
            except lmdb.Error as error:
                raise self.unavailable(error) from None

    def rows(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Rows of ``records``, None where there is none. As ``snapshot`` does it, at half the cost."""
        with self._lock:
            try:
                with self.env.begin(db=self.tables.records) as txn:
                    get = txn.get
                    return [get(key) if key else None for key in keys]  # LMDB takes no empty key; none is ever stored
            except lmdb.Error as error:
                raise self.unavailable(error) from None

    def reopen(self) -> None:
        """A fresh start after LMDB declared the environment dead (MDB_PANIC). May be tried again when it raises."""
        with self._lock:
            self.env.close()
            self.env, self.tables = self._open()

    def dead(self) -> bool:
        """Whether LMDB refuses to go on until the environment is opened anew."""
        try:
            with self.env.begin():
                return False
        except lmdb.PanicError:
            return True
        except lmdb.Error:
            return False

    def used(self) -> int:
        """Bytes of the map in use or waiting for reuse."""
        return int((self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"])

    def reserve(self) -> int:
        """Bytes of the map that deletions may use, and half of it the entries of refusals."""
        return min(limits.LMDB_RESERVE_BYTES, self.map_size // limits.LMDB_RESERVE_SHARE)

    def disk_free(self) -> int:
        """Bytes that the disk has for us. Raises OSError."""
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def unavailable(self, error: lmdb.Error | OSError) -> Unavailable:
        return Unavailable("store.unavailable", f"{self.folder}: {error}", hint="check path, permissions and disk")

    def close(self) -> None:
        """Reads fail from now on."""
        with self._lock:
            self.env.close()


def _sync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` durable: LMDB syncs its file, not the entry that leads to it (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
