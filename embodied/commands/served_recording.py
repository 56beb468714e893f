"""The recording of a server: its run directory, the thread that writes, and the summary at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from embodied.commands.served_checkpoint import ServedCheckpoint
from embodied.console import say
from embodied.errors import UserError
from embodied.run_directory import RunDirectory
from embodied.serving.metrics import ServingMetrics
from embodied.serving.recorder import RecordingQueue
from embodied.serving.session_recorder import SessionRecorder
from embodied.session_files.saved_session import SessionHeader
from embodied.types import Json

SESSIONS = "sessions"  # folder of the run
ON, OFF = ("on", True, "true"), ("off", False, "false", None)


class ServedRecording:
    """What a server that records needs, and what is said of it afterwards."""

    def __init__(self, config: DictConfig, checkpoint: ServedCheckpoint, directory: RunDirectory) -> None:
        self._checkpoint, self._directory = checkpoint, directory
        self.metrics = ServingMetrics()
        settings = config.recording
        self._recorder = SessionRecorder(directory.path / SESSIONS, self._header, int(settings.most_mb * 2**20))
        self.queue = RecordingQueue(
            self._recorder, settings.queue, self.metrics.record_dropped, most_bytes=int(settings.queue_mb * 2**20)
        )
        self._began_s = time.monotonic()
        self.summary: Path | None = None

    def swapped(self, checkpoint: ServedCheckpoint) -> None:
        """Later files are of this checkpoint."""
        self._checkpoint = checkpoint

    def close(self) -> None:
        """Write what is still in the queue, and the summary."""
        self.queue.close()
        self.summary = self._directory.write_summary(self._result())

    def _header(self, session: str, episode: int, began: str) -> SessionHeader:
        policy = self._checkpoint.policy
        return SessionHeader(
            spec=policy.spec,
            session=session,
            episode=episode,
            policy=policy.label,
            weights=self._checkpoint.weights,
            action_steps=policy.action_steps,
            inference_delay=policy.inference_delay,
            began=began,
        )

    def _result(self) -> Json:
        recorder = self._recorder
        return {
            "task": self._checkpoint.policy.spec.task,
            "policy": self._checkpoint.policy.label,
            "checkpoint": str(self._checkpoint.path),
            "weights": self._checkpoint.weights,
            "sessions": SESSIONS,
            "files": recorder.counts["files"],
            "bytes": recorder.bytes,
            "requests": {name: recorder.counts[name] for name in ("requests", "refused", "stale", "late")},
            "dropped_records": dict(self.queue.dropped),
            "recording_stopped": recorder.stopped,
            "timings": {"wall_s": time.monotonic() - self._began_s},
        }


def is_recording(config: DictConfig) -> bool:
    """
    Raises:
        UserError: neither on nor off, or limits that make no sense.
    """
    if config.record not in (*ON, *OFF):
        raise UserError(expected="record on or off", found=str(config.record), remedy="use one of them")
    for name, value in config.recording.items():
        if not value > 0:
            raise UserError(expected=f"recording.{name} above 0", found=str(value), remedy="set what is wanted")
    return config.record in ON


@contextmanager
def recording(config: DictConfig, checkpoint: ServedCheckpoint) -> Iterator[ServedRecording | None]:
    """The recording while a server runs; None if none is wanted. Closed at the end, whatever that is.

    Raises:
        UserError: another server writes into the run's directory, or it cannot be made.
    """
    if not is_recording(config):
        yield None
        return
    # Each server that records is a run of its own, even one of the same configuration.
    stem = f"{checkpoint.policy.spec.task}-{checkpoint.policy.label}"
    directory = RunDirectory.open("serve", stem, DictConfig({**config, "force": config.resume is None}))
    with directory.lock():
        served = ServedRecording(config, checkpoint, directory)
        say(f"recording: {directory.path / SESSIONS}")
        try:
            yield served
        finally:
            served.close()
