"""From what LeRobot's robot client saw to a message by LeRobot's names, which `ObservationReader` checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from embodied.errors import UserError
from embodied.serving.lerobot_values import PolicyInstructions, TimedObservation
from embodied.types import Json, TaskSpec

STATE, IMAGES = "observation.state", "observation.images."
INSTRUCTION = "task"
LARGEST_IMAGE_SIDE = 4096  # pixels


def lerobot_keys(spec: TaskSpec, keys: Mapping[str, str] | None) -> dict[str, str]:
    """Our names -> LeRobot's for `ObservationReader`: all state vectors as `observation.state`, cameras by their names.

    Args:
        keys: what a robot calls otherwise.
    """
    names = {"state": STATE, "instruction": INSTRUCTION}
    names |= {f"images/{camera.name}": f"{IMAGES}{camera.name}" for camera in spec.cameras}
    return {**names, **(keys or {})}


def as_message(
    seen: TimedObservation, instructions: PolicyInstructions | None, image_sizes: Mapping[str, tuple[int, int]]
) -> Json:
    """The robot's values by its own names, and by LeRobot's: `observation.state`, `observation.images.<camera>`.

    Args:
        instructions: with the order of the motors in `observation.state`; without them no such vector is made.
        image_sizes: height and width that an image is brought to, by any of its names, as LeRobot's own server does.

    Raises:
        UserError: a motor that the client announced is missing, or an image is none.
    """
    message: Json = dict(seen.observation)
    motors = _motors(instructions)
    if motors is not None:
        message[STATE] = np.array([_number(seen.observation, motor) for motor in motors], np.float64)
    for name, value in seen.observation.items():
        if isinstance(value, np.ndarray) and value.ndim == 3:
            message[f"{IMAGES}{name}"] = value
    for theirs, ours in (instructions.rename_map if instructions else {}).items():
        if theirs in message:
            message[ours] = message.pop(theirs)
    for name, size in image_sizes.items():
        if isinstance(message.get(name), np.ndarray):
            message[name] = resized(message[name], *size)
    return message


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image uint8 [h w 3] in another size, bilinear without smoothing, as LeRobot's own server resizes.

    Raises:
        UserError: it is no such image, or a huge one.
    """
    if image.ndim != 3 or image.dtype != np.uint8 or image.shape[2] != 3 or not _is_sane(image.shape[:2]):
        raise UserError(
            expected=f"camera images as uint8 [h w 3], at most {LARGEST_IMAGE_SIDE} pixels a side",
            found=f"{image.dtype.name} {list(image.shape)}",
            remedy="send the camera's image, colour last",
        )
    if image.shape[:2] == (height, width):
        return image
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0)
    sized = interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    return sized.squeeze(0).permute(1, 2, 0).contiguous().numpy()


def _is_sane(sides: tuple[int, ...]) -> bool:
    return all(1 <= side <= LARGEST_IMAGE_SIDE for side in sides)


def _motors(instructions: PolicyInstructions | None) -> list[str] | None:
    """The order of the values of `observation.state`, as the client's robot has it."""
    feature: Any = None if instructions is None else instructions.features.get(STATE)
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return list(names)


def _number(observation: Mapping[str, Any], name: str) -> float:
    value = observation.get(name)
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(
            expected=f"a number for '{name}', which the robot client announced",
            found="none" if name not in observation else type(value).__name__,
            remedy="send every motor in every observation",
        )
    try:
        return float(value)
    except OverflowError:
        return float("inf")
