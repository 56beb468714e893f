"""What a message says beside its observation: whose it is, until when it wants an answer, what was executed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embodied.errors import UserError
from embodied.serving.observation_reader import ObservationReader, UnusableValues
from embodied.serving.recorder import ExecutedActions
from embodied.types import Observation

LONGEST_NAME = 128  # letters of a session's key, an episode's or a request's id
LONGEST_DEADLINE_S = 3600.0
MOST_REPORTED = 1000  # executed actions in one request


@dataclass(frozen=True)
class Request:
    """One message of a robot. None: it does not say."""

    observation: Observation
    session: str | None  # key
    resets: bool  # a new episode begins with this observation
    seed: int | None  # of the new episode's noise
    episode_id: str | int | None
    time_s: float | None  # of the observation, since the episode began
    deadline_s: float | None  # from the arrival of the request
    executed: int | None  # control steps since the last request's observation
    reported: ExecutedActions | None  # what was executed since the last request, for the recording
    earlier: tuple[Observation, ...]  # of the control steps before this one, oldest first
    lost_earlier: bool  # one of them is of no use, and those before it are left out with it
    observes_only: bool  # no chunk is wanted
    wants_preview: bool
    echo: dict[str, Any]  # goes back as it came


class RequestReader:
    """Reads messages of openpi's protocol, with the keys that this server knows beside the observation's."""

    def __init__(self, observations: ObservationReader, history: int) -> None:
        """
        Args:
            history: of the policy: so many observations a request may bring along, less one.
        """
        self._observations, self._history = observations, history

    def read(self, message: Any) -> Request:
        """
        Raises:
            UserError: no map, or something in it is not as the protocol or the policy's spec has it.
        """
        if not isinstance(message, Mapping):
            raise UserError(
                expected="a map with the observation's keys",
                found=type(message).__name__,
                remedy="send each observation as one map",
            )
        earlier, lost_earlier = self._earlier(message)
        return Request(
            observation=self._observations.read(message),
            session=_name(message, "session"),
            resets=_flag(message, "reset"),
            seed=_integer(message, "seed", -(2**63), 2**63 - 1),
            episode_id=_name_or_number(message, "episode_id"),
            time_s=_number(message, "time_s", -1e9, 1e9),
            deadline_s=_number(message, "deadline_s", 0.0, LONGEST_DEADLINE_S),
            executed=_integer(message, "executed", 0, 2**31),
            reported=self._reported(message),
            earlier=earlier,
            lost_earlier=lost_earlier,
            observes_only=_flag(message, "observe_only"),
            wants_preview=_flag(message, "preview"),
            echo=echo_of(message),
        )

    def _reported(self, message: Mapping[Any, Any]) -> ExecutedActions | None:
        actions, times = message.get("executed_actions"), message.get("executed_at_s")
        if actions is None and times is None:
            return None
        size = self._observations.spec.action.size
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
            raise _wrong("executed_actions", f"float32 [n {size}], beside 'executed_at_s'", _outline(actions))
        count = len(actions)
        if actions.shape[1] != size or count > MOST_REPORTED or not np.isfinite(actions).all():
            wanted = f"at most {MOST_REPORTED} actions of {size} finite numbers"
            raise _wrong("executed_actions", wanted, _outline(actions))
        if not isinstance(times, np.ndarray) or times.shape != (count,) or times.dtype.kind != "f":
            raise _wrong("executed_at_s", f"float64 [{count}], a time of each executed action", _outline(times))
        if not np.isfinite(times).all():
            raise _wrong("executed_at_s", "finite times, in s", times.tolist())
        return ExecutedActions(actions.astype(np.float32), times.astype(np.float64))

    def _earlier(self, message: Mapping[Any, Any]) -> tuple[tuple[Observation, ...], bool]:
        """The frames directly before this one, and whether a sensor's failure cuts them short."""
        frames = message.get("earlier", ())
        if not frames:
            return (), False
        if not isinstance(frames, list) or not all(isinstance(frame, Mapping) for frame in frames):
            raise _wrong("earlier", "a list of observations, oldest first", frames)
        wanted = self._history - 1
        read: list[Observation] = []
        try:
            for frame in reversed(frames[-wanted:] if wanted else []):
                read.append(self._observations.read(frame))
        except UnusableValues:  # refused when it was the newest; those that follow it need not be
            return tuple(reversed(read)), True
        return tuple(reversed(read)), False


def echo_of(message: Any) -> dict[str, Any]:
    """What a client finds again in the answer, a refusal included; nothing of what has another form."""
    echo: dict[str, Any] = {}
    if isinstance(message, Mapping):
        for key in ("request_id", "client_time_s"):
            value = _plain(message.get(key))
            if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= LONGEST_NAME):
                echo[key] = value
    return echo


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _flag(message: Mapping[Any, Any], key: str) -> bool:
    value = _plain(message.get(key, False))
    if not isinstance(value, bool):
        raise _wrong(key, "true or false", value)
    return value


def _integer(message: Mapping[Any, Any], key: str, least: int, most: int) -> int | None:
    value = _plain(message.get(key))
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most):
        raise _wrong(key, f"a whole number between {least} and {most}", value)
    return value


def _number(message: Mapping[Any, Any], key: str, least: float, most: float) -> float | None:
    value = _plain(message.get(key))
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise _wrong(key, "a finite number", value)
    if not least <= value <= most:
        raise _wrong(key, f"a number between {least:g} and {most:g}", value)
    return float(value)


def _name(message: Mapping[Any, Any], key: str) -> str | None:
    value = message.get(key)
    if value is not None and (not isinstance(value, str) or not 1 <= len(value) <= LONGEST_NAME):
        raise _wrong(key, f"a text of 1 to {LONGEST_NAME} letters", value)
    return value


def _name_or_number(message: Mapping[Any, Any], key: str) -> str | int | None:
    value = _plain(message.get(key))
    return value if isinstance(value, int) else _name(message, key)


def _outline(value: Any) -> object:
    return f"{value.dtype.name} {list(value.shape)}" if isinstance(value, np.ndarray) else value


def _wrong(key: str, expected: str, found: object) -> UserError:
    return UserError(expected=f"'{key}' as {expected}", found=repr(found)[:80], remedy="correct it, or leave it out")
