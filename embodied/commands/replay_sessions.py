"""Served sessions for `embodied replay`: which one is meant, and how a running server is followed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import rerun as rr
from omegaconf import DictConfig

from embodied.console import say
from embodied.errors import UserError
from embodied.replay.live_sessions import SessionFollower, stream_to_viewer
from embodied.replay.session_recording import session_facts, write_session
from embodied.replay.viewer import has_screen, start_viewer
from embodied.run_directory import SUMMARY
from embodied.session_files.layout import session_files, session_name
from embodied.session_files.reader import read_session
from embodied.session_files.saved_session import SavedSession
from embodied.types import Json

SESSIONS = "sessions"  # folder of a run of embodied serve
LOOK_S = 0.25  # between two looks at a running server's files
COUNTED = ("session", "episode", "requests", "refused", "stale", "late", "executed_actions", "lost_records", "end")


def chosen_session(folder: Path, name: object) -> Path:
    """The file of this name in a run's `sessions`, or the newest.

    Raises:
        UserError: it is not there; says which are.
    """
    files = {session_name(path): path for path in session_files(folder)}
    if not files:
        raise UserError(
            expected=f"recorded sessions in {folder}",
            found="none",
            remedy="serve with record=on and let a robot connect, or name another run",
        )
    if name is None:
        return list(files.values())[-1]
    if str(name) not in files:
        newest = list(files)[::-1]
        more = f" and {len(newest) - 20} more" if len(newest) > 20 else ""
        raise UserError(
            expected=f"a session of {folder}",
            found=f"session={name}",
            remedy=f"recorded, the newest first: {', '.join(newest[:20])}{more}",
        )
    return files[str(name)]


def write_recording_of(path: Path, recording: Path) -> Json:
    """Write a session's recording; what the summary says of it."""
    session = read_session(path)
    write_session(recording, session, f"{session.header.spec.task}, session {session_name(path)}")
    return about_session(session)


def about_session(session: SavedSession) -> Json:
    facts = session_facts(session)
    return {
        "task": facts["task"],
        "steps": len(session.executed),
        "session": {name: facts[name] for name in COUNTED},
    }


def follow(config: DictConfig, run: Path, recordings: Path) -> list[Path]:
    """Show a running server's sessions as they grow, until it ends, `live_s` has passed or Ctrl-C.

    Returns:
        The recordings of all sessions, written at the end.

    Raises:
        UserError: no viewer can be shown and none was named, or files that are none of sessions.
    """
    address, viewer = _viewer(config)
    streams: dict[str, rr.RecordingStream] = {}
    connect = stream_to_viewer(address)

    def open_stream(name: str, session: SavedSession) -> rr.RecordingStream:
        say(f"session {name}")
        streams[name] = connect(name, session)
        return streams[name]

    follower = SessionFollower(run / SESSIONS, open_stream)
    say(f"following {run / SESSIONS}, shown at {address}; Ctrl-C ends it")
    try:
        _look_until_the_end(follower, lambda: (run / SUMMARY).is_file(), config.live_s)
    finally:
        for stream in streams.values():
            stream.disconnect()
    if viewer is not None and viewer.poll() is not None:
        say("the viewer was closed")
    return [
        write_session(recordings / f"{name}.rrd", session, f"{session.header.spec.task}, session {name}")
        for name, session in follower.sessions.items()
    ]


def _look_until_the_end(follower: SessionFollower, has_ended: Callable[[], bool], live_s: float | None) -> None:
    until_s = float("inf") if live_s is None else time.monotonic() + live_s
    try:
        while not (is_over := has_ended()) and time.monotonic() < until_s:
            follower.look()
            time.sleep(LOOK_S)
    except KeyboardInterrupt:  # how a person ends it
        is_over = True
    follower.look(is_over=is_over or live_s is not None)


def _viewer(config: DictConfig) -> tuple[str, subprocess.Popen[bytes] | None]:
    """The address of a viewer, started here unless one is named."""
    if config.viewer is not None:
        return str(config.viewer), None
    if not has_screen() or config.open is False:
        raise UserError(
            expected="a viewer for live=true",
            found="no screen here" if config.open is not False else "open=false",
            remedy="start `rerun` on a machine with a screen, or `rerun --web-viewer`, and name it: "
            "viewer=rerun+http://HOST:9876/proxy",
        )
    return start_viewer()
