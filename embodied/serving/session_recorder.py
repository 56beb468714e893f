"""Writes each episode of each session into a file of its own, until the disk or the limit is full."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from embodied.errors import UserError
from embodied.serving.answers import Answer
from embodied.serving.recorder import Event, RecordedRequest, RecordedSend, RecordingStopped, SessionEnd
from embodied.session_files.layout import OPEN_SUFFIX, SUFFIX
from embodied.session_files.records import request_record
from embodied.session_files.saved_session import SavedRequest, SessionHeader
from embodied.session_files.writer import SessionWriter
from embodied.types import Json

LOG = logging.getLogger(__name__)
LONGEST_NAME = 60  # letters of a session in the name of a file
MOST_OPEN_FILES = 512


class SessionRecorder:
    """A `Recorder` over a folder."""

    def __init__(self, folder: Path, header: Callable[[str, int, str], SessionHeader], most_bytes: int) -> None:
        """
        Args:
            folder: made if it is not there.
            header: of a new file, from the session's name, the number of its episode and the time, ISO 8601.
            most_bytes: of all files together.

        Raises:
            UserError: the folder cannot be made.
        """
        self._folder, self._header, self._most_bytes = folder, header, most_bytes
        self._open: dict[str, tuple[int, SessionWriter]] = {}  # by session: its episode
        self._finished_bytes = 0
        self.counts: Counter[str] = Counter()  # files, requests, refused, stale, late
        self.stopped: str | None = None  # why nothing is written any more
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                expected=f"to make {folder}", found=str(error.strerror or error), remedy="choose another run_root="
            ) from error

    @property
    def bytes(self) -> int:
        return self._finished_bytes + sum(writer.bytes for _, writer in self._open.values())

    def write(self, event: Event) -> None:
        """
        Raises:
            RecordingStopped: nothing is written any more.
        """
        if isinstance(event, SessionEnd):
            self._finish(event.session, "the session was closed")
        elif isinstance(event, RecordedSend):
            record = {"kind": "sent", "received_at_s": event.received_s, "sent_at_s": event.sent_s}
            if event.session in self._open:
                self._append(event.session, record)
        else:
            self._write_request(event)

    def lost(self, session: str, events: int) -> None:
        if session in self._open:
            self._append(session, {"kind": "lost", "records": events})

    def close(self) -> None:
        for session in list(self._open):
            self._finish(session, "the server ended")

    def _write_request(self, event: RecordedRequest) -> None:
        self._begin(event.session, event.episode)
        reported = event.reported
        if reported is not None and len(reported.at_s):
            self._append(event.session, {"kind": "executed", "at_s": reported.at_s, "actions": reported.actions})
        self._append(event.session, request_record(_saved(event)))
        self.counts["requests"] += 1
        self.counts["refused"] += bool(event.refusal)
        if event.answer is not None:
            self.counts["stale"] += event.answer.stale
            self.counts["late"] += event.answer.late

    def _begin(self, session: str, episode: int | None) -> None:
        """Have the file of this episode open."""
        present = self._open.get(session)
        if present is not None and (episode is None or episode == present[0]):
            return
        self._check_runs()
        self._finish(session, "a new episode began")
        if len(self._open) >= MOST_OPEN_FILES:
            raise RuntimeError(f"{MOST_OPEN_FILES} sessions are being recorded already")
        number = episode or 1
        header = self._header(session, number, datetime.now(UTC).isoformat(timespec="milliseconds"))
        try:
            self._open[session] = number, SessionWriter(self._free_path(session, number), header)
        except OSError as error:
            self._stop(error)
        self.counts["files"] += 1

    def _append(self, session: str, record: Json) -> None:
        self._check_runs()
        if self.bytes >= self._most_bytes:
            self._stop(f"{self._most_bytes / 2**20:g} MB are recorded; recording.most_mb allows no more")
        try:
            self._open[session][1].append(record)
        except OSError as error:
            self._stop(error)

    def _finish(self, session: str, why: str) -> None:
        _, writer = self._open.pop(session, (0, None))
        if writer is None:
            return
        try:
            writer.finish(why)
        except OSError as error:
            self._stop(error)
        finally:
            self._finished_bytes += writer.bytes

    def _check_runs(self) -> None:
        if self.stopped is not None:
            raise RecordingStopped(self.stopped)

    def _stop(self, why: OSError | str) -> None:
        """Write nothing any more: a disk that is full stays so, and robots go on."""
        is_first, self.stopped = self.stopped is None, self.stopped or _in_words(why, self._folder)
        for _, writer in self._open.values():
            self._finished_bytes += writer.bytes
            writer.abandon()
        self._open.clear()
        if is_first:
            LOG.error("recording has stopped, serving goes on", extra={"why": self.stopped})
        raise RecordingStopped(self.stopped)

    def _free_path(self, session: str, episode: int) -> Path:
        """Of a name that another session, before a reconnect perhaps, has not taken."""
        stem, number = f"{_safe(session)}-{episode}", 1
        while any((self._folder / f"{stem}{suffix}").exists() for suffix in (SUFFIX, OPEN_SUFFIX)):
            number += 1
            stem = f"{_safe(session)}-{episode}.{number}"
        return self._folder / f"{stem}{SUFFIX}"


def _safe(session: str) -> str:
    """A client's name of its session as a part of a file's: letters that cannot lead elsewhere, and not too many."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", session)[:LONGEST_NAME].strip("-")
    if plain == session:
        return plain
    return f"{plain or 'session'}-{hashlib.sha256(session.encode(errors='replace')).hexdigest()[:6]}"


def _in_words(why: OSError | str, folder: Path) -> str:
    return why if isinstance(why, str) else f"{why.strerror or why} in {folder}"


def _saved(event: RecordedRequest) -> SavedRequest:
    request = SavedRequest(
        received_at_s=event.received_s,
        given_at_s=event.given_s,
        deadline_at_s=event.deadline_s,
        asked_s=event.asked_s,
        observation=event.observation,
        executed=event.executed,
        refusal=event.refusal,
    )
    return request if event.answer is None else _answered(request, event.answer)


def _answered(request: SavedRequest, answer: Answer) -> SavedRequest:
    timings = answer.timings
    return replace(
        request,
        chunk=answer.chunk,
        observed_s=answer.observed_s,
        stale=answer.stale,
        late=answer.late,
        reason=answer.reason,
        history_repeated=answer.history_repeated,
        queue_ms=timings.queue_ms,
        infer_ms=timings.infer_ms,
        batch=timings.batch,
        weights=answer.policy,
    )
