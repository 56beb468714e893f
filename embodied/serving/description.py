"""What the server says of itself: on connecting, and at `/spec`."""

from __future__ import annotations

from embodied.protocols import Policy
from embodied.serving.observation_reader import INSTRUCTION, WHOLE_STATE, ObservationReader
from embodied.serving.sessions import Sessions
from embodied.types import Json

PROTOCOL = "embodied 1"  # openpi's websocket protocol with the further keys of docs/serving.md


def metadata(sessions: Sessions, reader: ObservationReader) -> Json:
    """The first frame of a connection; openpi's client keeps it as its metadata."""
    policy: Policy = sessions.policy
    return {
        "name": policy.spec.task,
        "protocol": PROTOCOL,
        "spec": policy.spec.to_json(),
        "control_hz": policy.spec.control_hz,
        "action_steps": policy.action_steps,
        "history": policy.history,
        "inference_delay": policy.inference_delay,
        "policy": policy.label,
        "weights": sessions.weights,
        "keys": reader.keys,
        "usual_deadline_s": sessions.usual_deadline_s,
    }


def wanted_keys(reader: ObservationReader) -> Json:
    """Key on the wire -> what is expected there."""
    spec, inputs = reader.spec, reader.inputs
    wanted: Json = {}
    for vector in inputs.state:
        wanted[reader.keys[f"state/{vector.name}"]] = {
            "shape": [vector.size],
            "dtype": "float32",
            "elements": list(vector.elements),
            "unit": vector.unit,
        }
    for camera in inputs.cameras:
        wanted[reader.keys[f"images/{camera.name}"]] = {"shape": [camera.height, camera.width, 3], "dtype": "uint8"}
    if inputs.state:
        wanted[reader.keys[WHOLE_STATE]] = {
            "shape": [spec.state_size],
            "dtype": "float32",
            "instead_of": [reader.keys[f"state/{vector.name}"] for vector in spec.state],
        }
    wanted[reader.keys[INSTRUCTION]] = {"dtype": "text", "optional": True}
    return wanted


def spec_document(sessions: Sessions, reader: ObservationReader) -> Json:
    """The answer of `/spec`: what to send, what comes back, how often."""
    action = sessions.spec.action
    return {
        **metadata(sessions, reader),
        "observation": wanted_keys(reader),
        "actions": {
            "shape": [sessions.policy.action_steps, action.size],
            "dtype": "float32",
            "elements": list(action.elements),
            "units": list(action.units),
            "low": list(action.low),
            "high": list(action.high),
            "representation": action.representation,
        },
    }


def largest_frame(reader: ObservationReader, history: int) -> int:
    """A limit for one message, in bytes: twice what the spec's observation takes, with a history of them."""
    spec = reader.spec
    images = sum(3 * camera.height * camera.width for camera in spec.cameras)
    return 2 * history * (images + 8 * spec.state_size) + 2**16
