"""Reads the file of an episode, also while it grows."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from embodied import wire
from embodied.errors import UserError
from embodied.session_files.layout import FRAME, MAGIC
from embodied.session_files.records import header_of, request_of
from embodied.session_files.saved_session import SavedRequest, SavedSession
from embodied.types import Json

READ_BYTES = 2**24  # at a time


class SessionReader:
    """Reads a file, and what is appended to it later."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: no such file, another one, or one of a newer version.
        """
        self.path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115  closed by `close`
        except OSError as error:
            raise UserError(
                expected="a file of a served session",
                found=f"none that can be read at {path} ({error.strerror})",
                remedy="name one of the files of sessions/ in a run of embodied serve record=on",
            ) from error
        self._rest = b""
        self._session: SavedSession | None = None
        self._by_arrival: dict[float, SavedRequest] = {}
        magic = self._file.read(len(MAGIC))
        if magic != MAGIC:
            newer = magic[:-1] == MAGIC[:-1] and magic > MAGIC
            raise _other_file(path, f"version {magic[-1]} of it" if newer else "another kind of file")
        self.poll()

    @property
    def session(self) -> SavedSession:
        """What was read so far.

        Raises:
            UserError: not even the header is there.
        """
        if self._session is None:
            raise _other_file(self.path, "one that ends before its header")
        return self._session

    @property
    def has_header(self) -> bool:
        return self._session is not None

    def poll(self) -> None:
        """Take the records that are whole by now.

        Raises:
            UserError: a record that was written whole, and is not one of a session.
        """
        while data := self._file.read(READ_BYTES):
            if self._session is None or not self._session.is_damaged:
                self._rest += data
                self._take_records()

    def close(self) -> None:
        self._file.close()

    def _take_records(self) -> None:
        begin = 0
        while self._session is None or not self._session.is_damaged:
            if len(self._rest) < begin + FRAME.size:
                break
            length, checksum = FRAME.unpack_from(self._rest, begin)
            data = self._rest[begin + FRAME.size : begin + FRAME.size + length]
            is_record = 0 < length <= wire.LARGEST_MESSAGE_BYTES
            if is_record and len(data) < length:
                break
            if not is_record or zlib.crc32(data) != checksum:
                self.session.is_damaged = True
                break
            begin += FRAME.size + length
            try:
                self._take(wire.unpack(data))
            except (LookupError, TypeError, ValueError, AttributeError, zlib.error) as error:
                raise _other_file(self.path, f"a damaged record ({type(error).__name__}: {error})") from error
        self._rest = self._rest[begin:]

    def _take(self, record: Any) -> None:
        kind = record["kind"]
        if self._session is None:
            if kind != "header":
                raise ValueError(f"it begins with '{kind}'")
            self._session = SavedSession(header_of(record))
        elif kind == "request":
            request = request_of(record, self._session.header.spec)
            self._session.requests.append(request)
            self._by_arrival[request.received_at_s] = request
        elif kind == "sent":
            if (sent := self._by_arrival.pop(record["received_at_s"], None)) is not None:
                sent.sent_at_s = float(record["sent_at_s"])
        elif kind == "executed":
            self._take_executed(self._session, record)
        elif kind == "lost":
            self._session.lost.append((len(self._session.requests), int(record["records"])))
        elif kind == "end":
            self._session.end = str(record["why"])

    @staticmethod
    def _take_executed(session: SavedSession, record: Json) -> None:
        times, actions = record["at_s"], np.asarray(record["actions"], np.float32)
        if actions.shape != (len(times), session.header.spec.action.size):
            raise ValueError(f"executed actions of shape {actions.shape} at {len(times)} times")
        session.executed_s += [float(time_s) for time_s in times]
        session.executed += list(actions)


def read_session(path: str | Path) -> SavedSession:
    """What a file holds now, of a running or of a killed server too.

    Raises:
        UserError: as `SessionReader`.
    """
    reader = SessionReader(Path(path))
    reader.close()
    return reader.session


def _other_file(path: Path, found: str) -> UserError:
    return UserError(
        expected=f"a served session of version {MAGIC[-1]} in {path}",
        found=found,
        remedy="name a file that embodied serve record=on wrote, or update this program",
    )
