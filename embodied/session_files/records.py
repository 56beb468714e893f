"""A session's header and requests as records, and back."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from embodied.session_files.saved_session import SavedRequest, SessionHeader
from embodied.types import ActionChunk, CameraSpec, Json, Observation, Preview, TaskSpec

FASTEST = 1  # of zlib's levels: a recording must keep up with cameras
_TOLD, _TIMES = ("stale", "late", "history_repeated"), ("observed_s", "queue_ms", "infer_ms")  # of an answer


def header_record(header: SessionHeader) -> Json:
    return {"kind": "header", **vars(header), "spec": header.spec.to_json()}


def header_of(record: Json) -> SessionHeader:
    """
    Raises:
        LookupError, TypeError, ValueError, AttributeError: the record is none of a header.
    """
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


def request_record(request: SavedRequest) -> Json:
    """Of what is known when the answer is; `sent_at_s` comes later, in a record of its own."""
    seen = request.observation
    return {
        "kind": "request",
        "received_at_s": request.received_at_s,
        "given_at_s": request.given_at_s,
        "deadline_at_s": request.deadline_at_s,
        "asked_s": request.asked_s,
        "observation": None if seen is None else _packed(seen),
        "executed": request.executed,
        "answer": None if request.chunk is None else _answer(request, request.chunk),
        "refusal": request.refusal,
    }


def _packed(observation: Observation) -> Json:
    """State as it is, images compressed without loss."""
    images = {name: zlib.compress(np.ascontiguousarray(image), FASTEST) for name, image in observation.images.items()}
    return {"state": dict(observation.state), "images": images, "instruction": observation.instruction}


def _answer(request: SavedRequest, chunk: ActionChunk) -> Json:
    preview = chunk.preview
    return {
        "actions": chunk.actions,
        "start_s": chunk.start_s,
        "dt_s": chunk.dt_s,
        "network_calls": chunk.network_calls,
        "preview_actions": None if preview is None else preview.actions,
        "preview_levels": None if preview is None else preview.levels,
        **{name: getattr(request, name) for name in (*_TOLD, *_TIMES, "reason", "batch", "weights")},
    }


def request_of(record: Json, spec: TaskSpec) -> SavedRequest:
    """
    Raises:
        LookupError, TypeError, ValueError, AttributeError, zlib.error: the record is no request of this spec.
    """
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
        for name in _TOLD:
            setattr(request, name, bool(answer[name]))
        for name in _TIMES:
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
