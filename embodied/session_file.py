"""One episode of a served session in one file: what the robot saw, what it was answered, what it did, and when.

The file grows while the episode runs, one checked record after the other, and gets its name at the end:

    <name>.session.part    8 bytes that name the format, then records: length, CRC-32, MessagePack as on the wire
    <name>.session         the same, once the episode is over

Whatever ends the server in between, every whole record is read. Nothing in a record can name code to run.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embodied import wire
from embodied.errors import UserError
from embodied.types import ActionChunk, CameraSpec, Json, Observation, Preview, TaskSpec

MAGIC = b"EMBSESS\x01"  # its last byte is the version
SUFFIX, OPEN_SUFFIX = ".session", ".session.part"
_FRAME = struct.Struct("<II")  # length of the record and its CRC-32
_FASTEST = 1  # of zlib's levels: a recording must keep up with cameras
READ_BYTES = 2**24  # at a time


@dataclass(frozen=True)
class SessionHeader:
    """What holds for the whole file."""

    spec: TaskSpec
    session: str
    episode: int  # of the session, counted from 1
    policy: str  # label
    weights: str  # first digits of their hash, when the episode began
    action_steps: int  # Ta
    inference_delay: int
    began: str  # by the server's wall clock, ISO 8601


@dataclass
class SavedRequest:
    """One request and what became of it. `..._at_s` are times of the server's monotonic clock."""

    received_at_s: float
    given_at_s: float  # when its answer was known
    deadline_at_s: float | None  # None: it never got as far
    asked_s: float | None  # of its observation, by the session's clock
    observation: Observation | None  # None: refused before it was one
    executed: int | None  # control steps since the request before, as the robot says
    refusal: str  # "" if it was not refused
    chunk: ActionChunk | None = None  # with its preview; None without a refusal: only remembered (`observe_only`)
    observed_s: float | None = None  # of the observation that the chunk was computed from
    stale: bool = False
    late: bool = False
    reason: str = ""  # of a stale answer
    history_repeated: bool = False
    queue_ms: float = 0.0
    infer_ms: float = 0.0
    batch: int = 0
    weights: str = ""
    sent_at_s: float | None = None  # None: the answer never left, or another protocol sent it


@dataclass
class SavedSession:
    """What a file holds so far."""

    header: SessionHeader
    requests: list[SavedRequest] = field(default_factory=list)
    executed_s: list[float] = field(default_factory=list)  # by the session's clock, [n]
    executed: list[np.ndarray] = field(default_factory=list)  # n times float32 [A], as the robot reported them
    lost: list[tuple[int, int]] = field(default_factory=list)  # (requests before it, records that were dropped)
    end: str | None = None  # why the episode was over; None: it runs, or the server was killed
    is_damaged: bool = False  # bytes follow that are no records


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
        self.append({"kind": "header", **_header_json(header)})

    def append(self, record: Json) -> None:
        """
        Raises:
            OSError: no space, for example; the file then ends with the record before.
        """
        data = wire.pack(record)
        self._write(_FRAME.pack(len(data), zlib.crc32(data)) + data)

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


def packed_observation(observation: Observation) -> Json:
    """For a record: state as it is, images compressed without loss."""
    images = {name: zlib.compress(np.ascontiguousarray(image), _FASTEST) for name, image in observation.images.items()}
    return {"state": dict(observation.state), "images": images, "instruction": observation.instruction}


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
            if len(self._rest) < begin + _FRAME.size:
                break
            length, checksum = _FRAME.unpack_from(self._rest, begin)
            data = self._rest[begin + _FRAME.size : begin + _FRAME.size + length]
            is_record = 0 < length <= wire.LARGEST_MESSAGE_BYTES
            if is_record and len(data) < length:
                break
            if not is_record or zlib.crc32(data) != checksum:
                self.session.is_damaged = True
                break
            begin += _FRAME.size + length
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
            self._session = SavedSession(_header(record))
        elif kind == "request":
            request = _request(record, self._session.header.spec)
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


def session_name(path: Path) -> str:
    """Of a file, whether its episode is over or not."""
    return path.name.removesuffix(OPEN_SUFFIX).removesuffix(SUFFIX)


def session_files(folder: Path) -> list[Path]:
    """All of a run, the oldest first."""
    found = [path for path in folder.glob("*") if path.name.endswith((SUFFIX, OPEN_SUFFIX))]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _header_json(header: SessionHeader) -> Json:
    return {**vars(header), "spec": header.spec.to_json()}


def _header(record: Json) -> SessionHeader:
    return SessionHeader(
        spec=TaskSpec.from_json(record["spec"]),
        session=str(record["session"]),
        episode=int(record["episode"]),
        policy=str(record["policy"]),
        weights=str(record["weights"]),
        action_steps=int(record["action_steps"]),
        inference_delay=int(record["inference_delay"]),
        began=str(record["began"]),
    )


def _request(record: Json, spec: TaskSpec) -> SavedRequest:
    packed, answer = record["observation"], record["answer"]
    observation = None
    if packed is not None:
        cameras = {camera.name: camera for camera in spec.cameras}
        observation = Observation(
            {str(name): np.asarray(values, np.float32) for name, values in packed["state"].items()},
            {str(name): _image(data, cameras[name]) for name, data in packed["images"].items()},
            str(packed["instruction"]),
            float(record["asked_s"]),
        )
    request = SavedRequest(
        received_at_s=float(record["received_at_s"]),
        given_at_s=float(record["given_at_s"]),
        deadline_at_s=_optional(record["deadline_at_s"]),
        asked_s=_optional(record["asked_s"]),
        observation=observation,
        executed=None if record["executed"] is None else int(record["executed"]),
        refusal=str(record["refusal"]),
    )
    if answer is not None:
        request.chunk = _chunk(answer, spec.action.size)
        for name in ("stale", "late", "history_repeated"):
            setattr(request, name, bool(answer[name]))
        for name in ("observed_s", "queue_ms", "infer_ms"):
            setattr(request, name, float(answer[name]))
        request.reason, request.weights, request.batch = str(answer["reason"]), str(answer["weights"]), answer["batch"]
    return request


def _chunk(answer: Json, size: int) -> ActionChunk:
    actions, levels = np.asarray(answer["actions"], np.float32), answer["preview_levels"]
    preview = None
    if levels is not None:
        preview = Preview(np.asarray(answer["preview_actions"], np.float32), np.asarray(levels, np.float32))
        if preview.actions.shape != (len(preview.levels), size):
            raise ValueError(f"a preview of shape {preview.actions.shape}")
    if actions.ndim != 2 or actions.shape[1] != size:
        raise ValueError(f"actions of shape {actions.shape}")
    times = float(answer["start_s"]), float(answer["dt_s"])
    return ActionChunk(actions, *times, network_calls=int(answer["network_calls"]), preview=preview)


def _image(data: bytes, camera: CameraSpec) -> np.ndarray:
    """No more is taken than the camera has, whatever the bytes say."""
    shape = (camera.height, camera.width, 3)
    pixels = zlib.decompressobj().decompress(data, camera.height * camera.width * 3)
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _other_file(path: Path, found: str) -> UserError:
    return UserError(
        expected=f"a served session of version {MAGIC[-1]} in {path}",
        found=found,
        remedy="name a file that embodied serve record=on wrote, or update this program",
    )
