"""Writes the file of an episode, record by record."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from embodied import wire
from embodied.session_files.layout import FRAME, MAGIC, OPEN_SUFFIX, SUFFIX
from embodied.session_files.records import header_record
from embodied.session_files.saved_session import SessionHeader
from embodied.types import Json


class SessionWriter:
    """Appends to one file. Not for several threads at once."""

    def __init__(self, path: Path, header: SessionHeader) -> None:
        """
        Args:
            path: of the finished file, `.session`; its folder exists.

        Raises:
            OSError: it cannot be written.
        """
        self.path, self._partial = path, path.with_name(path.name + OPEN_SUFFIX.removeprefix(SUFFIX))
        self.bytes = 0
        self._file = open(self._partial, "xb", buffering=0)  # noqa: SIM115  closed by `finish`
        self._write(MAGIC)
        self.append(header_record(header))

    def append(self, record: Json) -> None:
        """
        Raises:
            OSError: no space, for example; the file then ends with the record before.
        """
        data = wire.pack(record)
        self._write(FRAME.pack(len(data), zlib.crc32(data)) + data)

    def finish(self, end: str) -> None:
        """Say why the episode is over, and give the file its name.

        Raises:
            OSError: as `append`; the file keeps its provisional name.
        """
        try:
            self.append({"kind": "end", "why": end})
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        os.replace(self._partial, self.path)

    def abandon(self) -> None:
        """Leave the file as it is, under its provisional name."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self.bytes)
            raise
        self.bytes += len(data)
