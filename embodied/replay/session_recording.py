"""A served session as a Rerun recording: whole afterwards, or piece by piece while the server runs.

Timelines: `time`, the session's clock in s, and `step`, that time over the control period. Letters: A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rerun as rr

from embodied.replay import layout
from embodied.replay.recording import JPEG_QUALITY, action_series, recording_file
from embodied.replay.session_layout import EVENTS, LATENCY, NOISE, session_blueprint, state_entity
from embodied.session_files.saved_session import SavedRequest, SavedSession
from embodied.types import ActionChunk, TaskSpec

_GREEN, _ORANGE, _PINK, _RED, _GREY = (70, 200, 120), (255, 170, 40), (235, 80, 160), (240, 60, 60), (150, 150, 150)
_LATENCY = {  # of a request, ms
    "total": rr.SeriesPoints(colors=[_GREEN], marker_sizes=[2.5], names=["total"]),
    "inference": rr.SeriesPoints(colors=[_GREY], marker_sizes=[1.5], names=["inference"]),
    "deadline": rr.SeriesLines(colors=[_GREY], widths=[1.0], names=["deadline"]),
    "late": rr.SeriesPoints(colors=[_ORANGE], marker_sizes=[5.0], names=["late"]),
    "stale": rr.SeriesPoints(colors=[_RED], marker_sizes=[5.0], names=["stale"]),
}


def write_session(path: str | Path, session: SavedSession, title: str) -> Path:
    """Write a session as a Rerun recording (`.rrd`), whole or not at all, and return its path."""
    with recording_file(path, title, session_blueprint(session.header.spec)) as recording:
        logger = SessionLogger(recording, session)
        logger.log_new(is_over=True)
        logger.log_about(title)
    return Path(path)


def session_facts(session: SavedSession) -> dict[str, str | int]:
    """What is said of a session in words."""
    requests, header = session.requests, session.header
    return {
        "task": header.spec.task,
        "policy": header.policy,
        "weights": header.weights,
        "session": header.session,
        "episode": header.episode,
        "began": header.began,
        "requests": len(requests),
        "refused": sum(bool(request.refusal) for request in requests),
        "stale": sum(request.stale for request in requests),
        "late": sum(request.late for request in requests),
        "executed_actions": len(session.executed),
        "lost_records": sum(count for _, count in session.lost),
        "end": "the file is damaged"
        if session.is_damaged
        else session.end or "none: it runs, or the server was killed",
    }


class SessionLogger:
    """Logs what a session has got since the last time. The session grows outside."""

    def __init__(self, recording: rr.RecordingStream, session: SavedSession) -> None:
        self._recording, self._session = recording, session
        self._spec = session.header.spec
        self._requests = self._executed = self._lost = 0  # logged so far
        self._chunk: ActionChunk | None = None  # the newest: shown once it is known what follows it
        self._chunk_observed_s = -np.inf
        self._now_s = 0.0  # for what has no time of its own
        for name, style in _LATENCY.items():
            recording.log(f"{LATENCY}/{name}", style, static=True)
        for series in ("predicted", "previewed", "executed"):
            for entity in layout.action_entities(self._spec):
                recording.log(f"{entity}/{series}", action_series(series), static=True)

    def log_new(self, *, is_over: bool) -> None:
        """
        Args:
            is_over: nothing follows. Otherwise the newest request is kept back: its answer may not have left yet.
        """
        until = len(self._session.requests) - (0 if is_over else 1)
        new = self._session.requests[self._requests : max(until, self._requests)]
        for index, request in enumerate(new, self._requests):
            self._log_losses(index)
            self._log_request(request)
        self._requests += len(new)
        self._log_timings(new)
        self._log_states(new)
        if is_over:
            self._log_losses(len(self._session.requests))
            self._log_chunk(None)
        self._log_executed()

    def log_about(self, title: str) -> None:
        """What the session came to, in words. Once, at the end."""
        facts = session_facts(self._session)
        self._recording.send_property("session", rr.AnyValues(drop_untyped_nones=True, **facts))
        rows = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in facts.items())
        reported = "" if self._session.executed else "\n\nThe robot did not report what it executed."
        text = f"# {title}{reported}\n\n| | |\n| --- | --- |\n{rows}\n"
        self._recording.log("about", rr.TextDocument(text, media_type="text/markdown"), static=True)

    def _log_request(self, request: SavedRequest) -> None:
        if request.asked_s is not None:
            self._now_s = request.asked_s
        self._at(self._now_s)
        if request.refusal:
            self._event(f"refused: {request.refusal}", rr.TextLogLevel.ERROR)
        if request.stale:
            found = "it was not computed by its deadline" if request.reason == "deadline" else request.reason
            self._event(f"answered with an earlier chunk: {found}", rr.TextLogLevel.WARN)
        if request.late:
            self._event("answered after its deadline", rr.TextLogLevel.WARN)
        if request.history_repeated:
            self._event("frames of the history were missing", rr.TextLogLevel.WARN)
        if request.observation is not None:
            for name, image in request.observation.images.items():
                compressed = rr.Image(image).compress(jpeg_quality=JPEG_QUALITY)
                self._recording.log(layout.camera_entity(name), compressed)
        if request.chunk is not None and (request.observed_s or 0.0) > self._chunk_observed_s:
            self._log_chunk(request.chunk)
            self._chunk_observed_s = request.observed_s or 0.0
            self._log_noise(request.chunk)

    def _log_losses(self, before: int) -> None:
        """Gaps of the recording up to this request."""
        while self._lost < len(self._session.lost) and self._session.lost[self._lost][0] <= before:
            count = self._session.lost[self._lost][1]
            self._at(self._now_s)
            self._event(f"{count} records are missing here: the server's recorder fell behind", rr.TextLogLevel.WARN)
            self._lost += 1

    def _log_chunk(self, following: ActionChunk | None) -> None:
        """The newest chunk up to where the following one begins: no step has two predictions."""
        chunk, self._chunk = self._chunk, following
        if chunk is None:
            return
        ahead = len(chunk.actions)
        if following is not None:
            ahead = max(0, min(ahead, round((following.start_s - chunk.start_s) / chunk.dt_s)))
        times = chunk.start_s + np.arange(ahead) * chunk.dt_s
        self._log_actions("predicted", times, chunk.actions[:ahead])
        if chunk.preview is not None:
            noisy = chunk.preview.actions[:ahead]
            begins_s = chunk.start_s + len(chunk.actions) * chunk.dt_s
            self._log_actions("previewed", begins_s + np.arange(len(noisy)) * chunk.dt_s, noisy)

    def _log_noise(self, chunk: ActionChunk) -> None:
        if chunk.preview is None or not (chunk.preview.levels > 0).any():
            return
        levels = np.concatenate([np.zeros(len(chunk.actions), np.float32), chunk.preview.levels])
        self._recording.log(NOISE, rr.BarChart(levels, color=_PINK))

    def _log_executed(self) -> None:
        session, begin = self._session, self._executed
        self._executed = len(session.executed)
        if self._executed > begin:
            self._log_actions("executed", np.array(session.executed_s[begin:]), np.stack(session.executed[begin:]))

    def _log_actions(self, series: str, times_s: np.ndarray, actions: np.ndarray) -> None:
        """Of float32 [n A] at float64 [n]."""
        for index, entity in enumerate(layout.action_entities(self._spec)):
            self._send(f"{entity}/{series}", times_s, actions[:, index])

    def _log_timings(self, requests: Sequence[SavedRequest]) -> None:
        answered = [request for request in requests if request.chunk is not None]
        times_s = np.array([request.asked_s for request in answered], np.float64)
        total = np.array([_total_ms(request) for request in answered])
        self._send(f"{LATENCY}/total", times_s, total)
        fresh = np.array([not request.stale for request in answered], bool)
        self._send(f"{LATENCY}/inference", times_s[fresh], np.array([r.infer_ms for r in answered])[fresh])
        due = [1000 * ((r.deadline_at_s or r.received_at_s) - r.received_at_s) for r in answered]
        self._send(f"{LATENCY}/deadline", times_s, np.array(due))
        for name in ("late", "stale"):
            missed = np.array([getattr(request, name) for request in answered], bool)
            self._send(f"{LATENCY}/{name}", times_s[missed], total[missed])

    def _log_states(self, requests: Sequence[SavedRequest]) -> None:
        seen = [request.observation for request in requests if request.observation is not None]
        times_s = np.array([observation.time_s for observation in seen], np.float64)
        for vector in self._spec.state:
            shown = [n for n, observation in enumerate(seen) if vector.name in observation.state]
            for index, element in enumerate(vector.elements):
                values = np.array([seen[n].state[vector.name][index] for n in shown], np.float64)
                self._send(state_entity(vector, element), times_s[shown], values)

    def _send(self, entity: str, times_s: np.ndarray, values: np.ndarray) -> None:
        if len(values):
            columns = rr.Scalars.columns(scalars=np.asarray(values, np.float64))
            self._recording.send_columns(entity, indexes=_times(times_s, self._spec), columns=columns)

    def _at(self, time_s: float) -> None:
        self._recording.set_time("step", sequence=round(time_s / self._spec.dt_s))
        self._recording.set_time("time", duration=_nanoseconds(np.float64(time_s)))

    def _event(self, text: str, level: str) -> None:
        self._recording.log(EVENTS, rr.TextLog(text, level=level))


def _total_ms(request: SavedRequest) -> float:
    """From the whole request to the answer on its way; without that, to the answer."""
    until_s = request.given_at_s if request.sent_at_s is None else request.sent_at_s
    return 1000 * (until_s - request.received_at_s)


def _times(times_s: np.ndarray, spec: TaskSpec) -> list[rr.TimeColumn]:
    steps = np.round(times_s / spec.dt_s).astype(np.int64)
    return [rr.TimeColumn("step", sequence=steps), rr.TimeColumn("time", duration=_nanoseconds(times_s))]


def _nanoseconds(times_s: np.ndarray | np.float64) -> np.ndarray:
    """Rounded: Rerun cuts a float off, and 0.3 s from a sum would lie before 0.3 s."""
    return np.round(times_s * 1e9).astype("timedelta64[ns]")
