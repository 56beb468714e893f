"""The few central types. Numpy only, so that a thin robot client can import them.

Shape letters: T time, d size of one state vector, S all state vectors side by side, A action, h w image.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from embodied.errors import UserError

Json = dict[str, Any]
UNKNOWN_UNIT = "as the environment defines it"


@dataclass(frozen=True)
class StateSpec:
    """One named state vector of an observation, for example the end effector's position."""

    name: str
    elements: tuple[str, ...]  # one name an element
    unit: str  # of every element: "m", "rad", "quaternion xyzw", ...

    @property
    def size(self) -> int:
        return len(self.elements)


@dataclass(frozen=True)
class CameraSpec:
    """One camera of an observation; images are uint8 [height width 3], row 0 at the top."""

    name: str
    height: int
    width: int
    rendering: Json | None = None  # what decides how a scene's picture looks, setting by setting; None: not stated

    def checked(self, images: dict[str, np.ndarray]) -> np.ndarray:
        """This camera's image among those of an observation.

        Raises:
            UserError: none, or one of another shape or type.
        """
        remedy = "send every camera's image as the checkpoint's spec has it"
        wanted = f"the image of camera '{self.name}' as uint8 {[self.height, self.width, 3]}"
        if self.name not in images:
            found = "images of " + (", ".join(sorted(images)) or "(no camera)")
            raise UserError(expected=wanted, found=found, remedy=remedy)
        image = np.asarray(images[self.name])
        if image.shape != (self.height, self.width, 3) or image.dtype != np.uint8:
            raise UserError(expected=wanted, found=f"{image.dtype.name} {list(image.shape)}", remedy=remedy)
        return image


@dataclass(frozen=True)
class ActionGroup:
    """Elements of an action that are one quantity: what a difference between two such actions means."""

    name: str
    kind: Literal["position", "rotation"]  # differences are subtractions, or turns
    elements: tuple[str, ...]  # names, in order; never binary ones
    scale: float = 1.0  # an element of 1.0 stands for this many m, rad or other units of the reference; 1 for 6-D
    reference: str | None = None  # the state vector with the quantity's present value; None where none shows it


@dataclass(frozen=True)
class ActionSpec:
    """What an action vector means, element by element."""

    elements: tuple[str, ...]
    units: tuple[str, ...]  # what an element of 1.0 stands for
    low: tuple[float, ...]
    high: tuple[float, ...]
    binary: tuple[bool, ...]  # True where only the two ends mean something (a gripper)
    representation: Literal["absolute", "delta"]
    rotation: Literal["axis_angle", "rotation_6d", "none"]
    groups: tuple[ActionGroup, ...] | None = None  # elements in none are commands of their own; None: not stated

    @property
    def size(self) -> int:
        return len(self.elements)

    @staticmethod
    def from_json(data: Json) -> ActionSpec:
        """The inverse of `dataclasses.asdict`; data written before there were groups do not state them."""
        fields: Json = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        if fields.get("groups") is not None:
            fields["groups"] = tuple(
                ActionGroup(**{**group, "elements": tuple(group["elements"])}) for group in fields["groups"]
            )
        return ActionSpec(**fields)

    def clipped(self, action: np.ndarray) -> np.ndarray:
        """An action, [A], as float64 within the bounds.

        Raises:
            UserError: it has another shape, or is not finite.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (self.size,):
            raise UserError(
                expected=f"an action of {self.size} values ({', '.join(self.elements)})",
                found=f"shape {list(action.shape)}",
                remedy="send actions as the task's spec defines them",
            )
        if not np.isfinite(action).all():
            raise UserError(
                expected="finite action values", found=str(action.tolist()), remedy="check what computed the action"
            )
        low, high = self._bounds
        return np.minimum(np.maximum(action, low), high)

    @functools.cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """As arrays, which `clipped` needs at every control step."""
        return np.array(self.low, np.float64), np.array(self.high, np.float64)


@dataclass(frozen=True)
class TaskSpec:
    """What a task shows, what it takes, how fast and for how long. Travels with stores and checkpoints."""

    task: str  # the catalogue's name, for example "robosuite/lift"
    state: tuple[StateSpec, ...]
    cameras: tuple[CameraSpec, ...]
    action: ActionSpec
    control_hz: float
    horizon: int  # control steps of one episode

    @property
    def dt_s(self) -> float:
        return 1.0 / self.control_hz

    @property
    def state_size(self) -> int:
        """Size of all state vectors side by side."""
        return sum(spec.size for spec in self.state)

    def flatten_state(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """Lay the named state vectors ([... d] each) side by side in the spec's order: float32 [... S].

        Raises:
            UserError: a vector is missing or has another size than the spec says.
        """
        parts = []
        for spec in self.state:
            if spec.name not in state:
                raise UserError(
                    expected=f"the state vector '{spec.name}' of task {self.task}",
                    found="state vectors " + (", ".join(sorted(state)) or "(none)"),
                    remedy="send every state vector that the checkpoint's spec names",
                )
            part = np.asarray(state[spec.name], dtype=np.float32)
            if part.shape[-1:] != (spec.size,):
                raise UserError(
                    expected=f"'{spec.name}' with {spec.size} values ({', '.join(spec.elements)})",
                    found=f"shape {part.shape}",
                    remedy=f"send '{spec.name}' as task {self.task} defines it",
                )
            parts.append(part)
        return np.concatenate(parts, axis=-1)

    def to_json(self) -> Json:
        return asdict(self)

    @staticmethod
    def from_json(data: Json) -> TaskSpec:
        return TaskSpec(
            task=data["task"],
            state=tuple(StateSpec(s["name"], tuple(s["elements"]), s["unit"]) for s in data["state"]),
            cameras=tuple(CameraSpec(**camera) for camera in data["cameras"]),
            action=ActionSpec.from_json(data["action"]),
            control_hz=float(data["control_hz"]),
            horizon=int(data["horizon"]),
        )

    def differences(self, other: TaskSpec) -> list[str]:
        """Each difference in words, `self` first; empty if the two agree as far as both state what they are."""
        mine, theirs = self.to_json(), other.to_json()
        if self.action.groups is None or other.action.groups is None:
            mine["action"], theirs["action"] = ({**spec["action"], "groups": None} for spec in (mine, theirs))
        _compare_renderings(mine, theirs)
        return json_differences(mine, theirs)


def _compare_renderings(mine: Json, theirs: Json) -> None:
    """Take how cameras draw out of both specs, and put it back, a name of its own a setting, where both state it."""
    renderings = [{c["name"]: c.get("rendering") for c in spec["cameras"]} for spec in (mine, theirs)]
    stated = [name for name in renderings[0] if all(rendering.get(name) is not None for rendering in renderings)]
    for spec, rendering in zip((mine, theirs), renderings, strict=True):
        spec["cameras"] = [{key: value for key, value in c.items() if key != "rendering"} for c in spec["cameras"]]
        spec["rendering"] = {name: rendering[name] for name in stated}


def json_differences(one: Json, other: Json) -> list[str]:
    """Each difference in words, with its dotted path, `one` first; empty if the two agree."""
    mine, theirs = _leaves(one), _leaves(other)
    return [
        f"{key}: {mine.get(key, '(absent)')} against {theirs.get(key, '(absent)')}"
        for key in mine | theirs
        if mine.get(key) != theirs.get(key)
    ]


def _leaves(data: Json) -> dict[str, Any]:
    """Dotted path -> value, with lists of named things keyed by their name."""
    leaves: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            for item in value:
                leaves[f"{key}.{item['name']}"] = {k: v for k, v in item.items() if k != "name"}
        elif isinstance(value, dict):
            leaves.update({f"{key}.{k}": v for k, v in _leaves(value).items()})
        else:
            leaves[key] = value
    return leaves


@dataclass
class Observation:
    """What a policy sees at one control step."""

    state: dict[str, np.ndarray]  # float32 [d] each
    images: dict[str, np.ndarray] = field(default_factory=dict)  # uint8 [h w 3] each
    instruction: str = ""
    time_s: float = 0.0  # since the episode began


@dataclass
class Preview:
    """What a policy predicts beyond a chunk, still noisy or already clean, for replay, executors and prefix methods."""

    actions: np.ndarray  # float32 [P A], in the action's own units
    levels: np.ndarray  # float32 [P], 0 clean .. 1 pure noise


@dataclass
class ActionChunk:
    """Actions to execute from `start_s` on, one every `dt_s`.

    `start_s` is the time of the observation that they were computed from, or `inference_delay` control steps later
    where the policy plans for one (`Policy.inference_delay`).

    start_s          +dt_s          +2 dt_s                 +Ta dt_s
      | actions[0]     | actions[1]   | ... actions[Ta - 1]   | preview.actions[0] ...
    """

    actions: np.ndarray  # float32 [Ta A], clean
    start_s: float
    dt_s: float
    network_calls: int = 0  # what this chunk cost
    preview: Preview | None = None


@dataclass
class Step:
    """What one control step led to."""

    observation: Observation
    reward: float
    terminated: bool  # the task itself ended; never merely because it succeeded
    truncated: bool  # the horizon is reached
    info: Json  # "success": after this step; "success_ever": at any step of the episode so far


@dataclass
class Episode:
    """One demonstration or one rollout; every array has a leading time axis [T ...].

    Row t holds the observation before action t, and the reward and success after it.
    """

    task: str
    seed: int  # the start id
    state: dict[str, np.ndarray]  # float32 [T d]
    images: dict[str, np.ndarray]  # uint8 [T h w 3]
    action: np.ndarray  # float32 [T A], the clean label
    executed: np.ndarray  # float32 [T A], with its noise, as the task received it
    reward: np.ndarray  # float32 [T]
    success: np.ndarray  # bool [T]
    time_s: np.ndarray  # float64 [T]
    physics: np.ndarray  # float64 [T n], the simulator's state, from which a replay can be drawn; n may be 0
    instruction: str = ""
    variant: str = "base"
    provenance: Json = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.action)

    @property
    def success_ever(self) -> bool:
        return bool(self.success.any())

    @property
    def success_last(self) -> bool:
        return bool(len(self.success) and self.success[-1])

    @property
    def first_success(self) -> int | None:
        """Steps until the first success, counted from 1; None without one."""
        return int(np.argmax(self.success)) + 1 if self.success.any() else None


@dataclass
class Rollout:
    """An episode that a policy drove, with what it predicted. C chunks were handed out.

    d is the policy's `inference_delay`: the first d actions of each chunk but the first were settled by the one before.
    """

    episode: Episode
    chunk_steps: np.ndarray  # int64 [C], the control step that the first of each chunk's actions is for
    chunk_actions: np.ndarray  # float32 [C d+Ta A]
    preview_actions: np.ndarray  # float32 [C P A]; P is 0 for a policy that predicts no more than it hands out
    preview_levels: np.ndarray  # float32 [C P], 0 clean .. 1 pure noise
    latency_ms: np.ndarray  # float32 [C]
    network_calls: np.ndarray  # int64 [C]
    stages: Json = field(default_factory=dict)  # sub-stages of the task, in their order: whether each was ever reached


@dataclass(frozen=True)
class Statistics:
    """Of one key over a whole store: float64 [d] each, and the number of rows."""

    minimum: np.ndarray
    maximum: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    count: int

    def to_json(self) -> Json:
        return {
            "minimum": self.minimum.tolist(),
            "maximum": self.maximum.tolist(),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "count": self.count,
        }

    @staticmethod
    def from_json(data: Json) -> Statistics:
        arrays = {name: np.asarray(data[name], np.float64) for name in ("minimum", "maximum", "mean", "std")}
        return Statistics(**arrays, count=int(data["count"]))


@dataclass
class Window:
    """A batch of training windows, in numpy. B windows, To observations of history, H actions.

    The last history row and the first action belong to the same control step, unless `past` actions lead.
    """

    state: np.ndarray  # float32 [B To S]
    action: np.ndarray  # float32 [B H A]
    valid: np.ndarray  # bool [B H], False where the action is padding that the loss must not see
    images: dict[str, np.ndarray] = field(default_factory=dict)  # uint8 [B To h w 3] a camera that the policy sees
    executed: np.ndarray | None = None  # float32 [B H A], with their noise, where the policy asks for them


@dataclass(frozen=True)
class Geom:
    """One piece of a scene's geometry, fixed to a body."""

    body: int  # index into Scene.bodies
    name: str
    kind: Literal["plane", "sphere", "capsule", "ellipsoid", "cylinder", "box", "mesh"]
    size: tuple[float, float, float]  # MuJoCo's half sizes, in m
    position: tuple[float, float, float]  # in the body's frame, m
    quaternion: tuple[float, float, float, float]  # in the body's frame, w x y z
    rgba: tuple[float, float, float, float]  # 0..1
    vertices: np.ndarray | None = None  # float32 [V 3], kind "mesh" only
    faces: np.ndarray | None = None  # uint32 [F 3], kind "mesh" only


@dataclass(frozen=True)
class Scene:
    """What a task looks like, without a renderer: bodies that move and geometry fixed to them."""

    bodies: tuple[str, ...]
    geoms: tuple[Geom, ...]
    tool: int  # index of the body that the actions move (the end effector)
    # Where an absolute action sends the tool: to targets @ [action, 1], m; 3 rows of A + 1. None where that is unknown.
    targets: tuple[tuple[float, ...], ...] | None = None
