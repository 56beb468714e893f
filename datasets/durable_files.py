"""File operations whose result survives a crash and a loss of power, or that leave what was there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zarr.abc.buffer import Buffer
from zarr.storage import LocalStore

from embodied.errors import UserError

PARTIAL = ".partial"  # end of the name of a file that is being written
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DurableStore(LocalStore):
    """Zarr's store on the local file system, with every object on the disk when `set` returns.

    Zarr replaces objects by rename but never syncs them: after a power cut a committed shard could be empty.
    """

    async def set(self, key: str, value: Buffer) -> None:
        self.set_sync(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        self._check_writable()
        replace_file(self.root / key, value.as_buffer_like(), root=self.root)


def replace_file(path: Path, content: bytes | memoryview, *, root: Path) -> None:
    """Write a whole file or nothing; missing folders below `root` are made."""
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if is_new:  # its name must last too, and so must those of new folders
        folder = path.parent
        while folder.is_relative_to(root):
            sync_folder(folder)
            folder = folder.parent


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_full_as_user_error(path: Path) -> Iterator[None]:
    """Turn the system's "no space left" into a UserError about the disk of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            expected=f"room for another episode on the disk of {path}",
            found=f"{os.strerror(error.errno)} ({_megabytes(_free_bytes(path))} free)",
            remedy="free some space and run the same command again: what was committed before is kept",
        ) from error


def require_free_space(path: Path, needed_bytes: int) -> None:
    """Raise a UserError if the disk that `path` is (or will be) on has less free than `needed_bytes`."""
    free = _free_bytes(path)
    if free < needed_bytes:
        raise UserError(
            expected=f"at least {_megabytes(needed_bytes)} free at {path}",
            found=_megabytes(free),
            remedy="free some space, or name a folder on another disk",
        )


def _free_bytes(path: Path) -> int:
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


class WriterLock:
    """Held by the one process that writes a store; the system lets go of it when that process ends, however it ends.

    Raises:
        UserError: another writer holds it, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                expected=f"a store that can be written at {path.parent}",
                found=str(error.strerror),
                remedy="change the folder's permissions, or copy the store to a place of your own",
            ) from error
        try:
            # Of the open file, not of the process: two writers in one process exclude each other too.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._descriptor, 32).decode(errors="replace") or "unknown"
            self.release()
            raise UserError(
                expected=f"no other writer of {path.parent}",
                found=f"process {holder} writing it",
                remedy="wait until it has finished, or stop it",
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    @staticmethod
    def holder(path: Path) -> str | None:
        """The process that holds the lock, by its number; None if none does. Writes nothing."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.read(descriptor, 32).decode(errors="replace") or "unknown"
        finally:
            os.close(descriptor)  # and with it a lock of ours
        return None

    def release(self) -> None:
        if self._descriptor is not None:
            # Unlock first: a child process may have inherited the descriptor, and closing ours would not free it.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None
