"""Follows the sessions of a server that runs: reads its files as they grow, logs what is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rerun as rr

from embodied.replay.recording import APPLICATION
from embodied.replay.session_layout import session_blueprint
from embodied.replay.session_recording import SessionLogger
from embodied.session_files.layout import MAGIC, session_files, session_name
from embodied.session_files.reader import SessionReader
from embodied.session_files.saved_session import SavedSession


@dataclass
class _Followed:
    reader: SessionReader
    logger: SessionLogger | None = None
    requests: int = 0  # so far
    is_over: bool = False


class SessionFollower:
    """Of one folder; each session of it is a recording of its own."""

    def __init__(self, folder: Path, open_stream: Callable[[str, SavedSession], rr.RecordingStream]) -> None:
        """
        Args:
            open_stream: makes the recording of a session, from the name of its file.
        """
        self._folder, self._open_stream = folder, open_stream
        self._followed: dict[str, _Followed] = {}

    @property
    def sessions(self) -> dict[str, SavedSession]:
        """By the names of their files, as far as they are read."""
        return {name: one.reader.session for name, one in self._followed.items() if one.reader.has_header}

    def look(self, *, is_over: bool = False) -> int:
        """Take what is new. Returns how many requests came.

        Args:
            is_over: the server has ended: what it left is all there will be.
        """
        for path in session_files(self._folder):
            if session_name(path) not in self._followed and path.stat().st_size >= len(MAGIC):
                self._followed[session_name(path)] = _Followed(SessionReader(path))
        return sum(self._take(name, one, is_over) for name, one in self._followed.items() if not one.is_over)

    def _take(self, name: str, one: _Followed, is_over: bool) -> int:
        one.reader.poll()
        if not one.reader.has_header:
            return 0
        session = one.reader.session
        if one.logger is None:
            one.logger = SessionLogger(self._open_stream(name, session), session)
        one.is_over = is_over or session.end is not None or session.is_damaged
        one.logger.log_new(is_over=one.is_over)
        if one.is_over:
            one.logger.log_about(name)
            one.reader.close()
        before, one.requests = one.requests, len(session.requests)
        return one.requests - before


def stream_to_viewer(address: str) -> Callable[[str, SavedSession], rr.RecordingStream]:
    """Recordings that a viewer shows as they grow, such as one at rerun+http://127.0.0.1:9876/proxy."""

    def open_stream(name: str, session: SavedSession) -> rr.RecordingStream:
        recording = rr.RecordingStream(APPLICATION, recording_id=f"{name}-{session.header.began}")
        blueprint = session_blueprint(session.header.spec)
        recording.connect_grpc(address, default_blueprint=blueprint)
        recording.set_log_time_enabled(False)
        recording.set_log_tick_enabled(False)
        recording.send_recording_name(name)
        return recording

    return open_stream
