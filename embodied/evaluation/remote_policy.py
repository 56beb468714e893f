"""A policy behind a policy server, in the place of one in this process."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embodied.catalog import nearest
from embodied.client import PolicyClient
from embodied.errors import UserError
from embodied.types import ActionChunk, Json, Observation, TaskSpec

WHOLE_STATE = "state"  # all state vectors side by side, in the spec's order


@dataclass(frozen=True)
class ServerSettings:
    """Where a policy server is and how it is spoken to."""

    address: str  # ws://host:port
    action_steps: int | None = None  # Ta, executed of each answer; None: as many as the server's metadata say
    keys: Mapping[str, str] | None = None  # what is sent: our name -> the server's; None or empty: all, by ours
    api_key: str | None = None
    ca_file: str | None = None  # certificates that are trusted in the place of the system's
    connect_timeout_s: float = 10.0
    answer_timeout_s: float = 10.0


class RemotePolicy:
    """Speaks openpi's websocket protocol. Each session is a connection of its own: its server resets with it.

    A server that states the `spec` of its policy in its metadata is checked against the task's; of others the shape of
    their actions is.
    """

    history = 1  # the server keeps what else its policy wants to see
    inference_delay = 0  # the protocol has no word for one

    def __init__(self, spec: TaskSpec, settings: ServerSettings) -> None:
        """
        Raises:
            UserError: keys that the task's observations do not have, nobody says how many actions of an answer to
                execute, or the server's metadata are not readable.
            PolicyServerError: it cannot be reached.
        """
        self._settings = settings
        self._sent = _sources(spec, settings.keys)
        client = self._connect()
        client.close()
        self.metadata: Json = client.metadata
        self.spec = _stated_spec(self.metadata) or spec
        self.action_steps = _action_steps(settings.action_steps, self.metadata)

    @property
    def label(self) -> str:
        return f"server {self._settings.address}"

    def initial_state(self, seed: int) -> RemoteSession:
        """A new connection. The seed stays here: the protocol has no place for one."""
        return RemoteSession(self._connect())

    def step(
        self,
        histories: Sequence[Sequence[Observation]],
        states: Sequence[RemoteSession],
        executed: Sequence[int],
    ) -> tuple[list[ActionChunk], list[RemoteSession]]:
        """One request a session, one after the other.

        Raises:
            UserError: as `PolicyClient.infer`, or an answer that is no chunk of this task's actions.
        """
        return [self._chunk(history[-1], state) for history, state in zip(histories, states, strict=True)], list(states)

    def _chunk(self, observation: Observation, session: RemoteSession) -> ActionChunk:
        answer = session.client.infer({name: read(observation) for name, read in self._sent.items()})
        actions = np.asarray(answer["actions"])
        size = self.spec.action.size
        if actions.ndim != 2 or actions.shape[1] != size or len(actions) < self.action_steps:
            raise UserError(
                expected=f"at least {self.action_steps} actions of {size} values "
                f"({', '.join(self.spec.action.elements)})",
                found=f"shape {list(actions.shape)} from {self.label}",
                remedy="serve a policy that was trained for this task, or set server.action_steps",
            )
        chunk = actions[: self.action_steps].astype(np.float32)
        return ActionChunk(chunk, observation.time_s, self.spec.dt_s)

    def _connect(self) -> PolicyClient:
        settings = self._settings
        return PolicyClient(
            settings.address,
            api_key=settings.api_key,
            ca_file=settings.ca_file,
            connect_timeout_s=settings.connect_timeout_s,
            answer_timeout_s=settings.answer_timeout_s,
        )


class RemoteSession:
    """A connection, closed as soon as nobody holds the session any more."""

    def __init__(self, client: PolicyClient) -> None:
        self.client = client
        weakref.finalize(self, client.close)


Read = Callable[[Observation], object]


def _sources(spec: TaskSpec, keys: Mapping[str, str] | None) -> dict[str, Read]:
    """What reads each value that is sent, by the server's name for it."""
    known: dict[str, Read] = {f"state/{state.name}": _state(state.name) for state in spec.state}
    known |= {f"images/{camera.name}": _image(camera.name) for camera in spec.cameras}
    known |= {"instruction": lambda observation: observation.instruction}
    optional: dict[str, Read] = {
        WHOLE_STATE: lambda observation: spec.flatten_state(observation.state),
        "time_s": lambda observation: float(observation.time_s),
    }
    if not keys:
        return {"prompt" if name == "instruction" else name: read for name, read in known.items()}
    everything = known | optional
    for name in keys:
        if name not in everything:
            raise UserError(
                expected=f"observations of {spec.task} in server.keys",
                found=f"'{name}'",
                remedy=nearest(name, everything),
            )
    return {theirs: everything[ours] for ours, theirs in keys.items()}


def _state(name: str) -> Read:
    return lambda observation: observation.state[name]


def _image(name: str) -> Read:
    return lambda observation: observation.images[name]


def _stated_spec(metadata: Json) -> TaskSpec | None:
    """The spec that a server of this project states."""
    if "spec" not in metadata:
        return None
    try:
        return TaskSpec.from_json(metadata["spec"])
    except (LookupError, TypeError, ValueError, AttributeError):
        return None  # another server's key of that name


def _action_steps(wanted: int | None, metadata: Json) -> int:
    stated = metadata.get("action_steps")
    steps = wanted if wanted is not None else stated
    if isinstance(steps, int) and not isinstance(steps, bool) and steps >= 1:
        return steps
    raise UserError(
        expected="how many actions of an answer to execute before the next request, at least 1",
        found=f"server.action_steps={wanted}"
        + ("" if wanted is not None else ", and nothing in the server's metadata"),
        remedy="set server.action_steps, for example 8",
    )
