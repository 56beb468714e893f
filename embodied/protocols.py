"""What the parts of the program ask of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from embodied.types import (
    ActionChunk,
    Episode,
    Json,
    Observation,
    Scene,
    Statistics,
    Step,
    TaskSpec,
    Window,
)


@runtime_checkable
class Task(Protocol):
    """A simulated task with addressed starts and a fixed horizon."""

    spec: TaskSpec

    def reset(self, start_id: int) -> Observation:
        """Go to the addressed start. The same id gives bit-equal observations, whatever came before."""
        ...

    def step(self, action: np.ndarray) -> Step:
        """Execute one action, float32 [A]; values outside the spec's bounds are clipped.

        Raises:
            UserError: the action has another shape, or is not finite.
        """
        ...

    def observation(self) -> Observation:
        """That of the last reset or step, again; an expert made from a policy acts on it.

        Raises:
            UserError: no reset yet.
        """
        ...

    def physics_state(self) -> np.ndarray:
        """The simulator's state, float64 [n], enough to draw it again."""
        ...

    def scene(self) -> Scene:
        """The geometry of the present episode."""
        ...

    def body_poses(self, physics_states: np.ndarray) -> np.ndarray:
        """Poses of the scene's bodies for physics states [T n]: float32 [T bodies 7], x y z (m) then w x y z."""
        ...

    def close(self) -> None: ...


class Variant(Protocol):
    """One way in which a task differs from itself: another light, a camera moved, weaker servos."""

    @property
    def id(self) -> str:
        """Stable: results of two evaluations are compared by it. "base" is the task as it is."""
        ...

    @property
    def axis(self) -> str:
        """What it varies: "light", "camera", "dynamics", ...; "base" for none."""
        ...

    @property
    def protocol(self) -> str:
        """Of which evaluation protocol it is part, such as "variant_aggregation"; empty where there is none."""
        ...

    @property
    def counted(self) -> bool:
        """Whether it is part of its protocol's plain mean, or reported apart."""
        ...


class Expert(Protocol):
    """A teacher that reads the simulator's state, never the elapsed time, so that it can label any state.

    What it must remember is explicit: it comes in, it goes out, and it can be inferred again from the state.
    """

    def infer_memory(self) -> Any:
        """The memory that fits the task's present state; None for an expert without one."""
        ...

    def act(self, memory: Any) -> tuple[np.ndarray, Any]:
        """The clean action, float32 [A], for the task's present state, and the memory for the next one."""
        ...


class SessionState(Protocol):
    """What a policy keeps of one robot between two calls. Opaque to everybody else."""


class Policy(Protocol):
    """Weights and mathematics without hidden state: whatever lasts is in the sessions' states."""

    spec: TaskSpec
    history: int  # observations that it wants to see, the newest included
    action_steps: int  # Ta, actions that one chunk hands out
    # d, control steps from an observation to the first action of the chunk that is computed from it; d <= Ta. The first
    # chunk of an episode begins at once and hands out Ta + d, so that with d left the next observation is due.
    inference_delay: int

    @property
    def label(self) -> str:
        """What it is and how it is run, in a word or two: "sdp k=2"."""
        ...

    def initial_state(self, seed: int) -> SessionState:
        """The state of a session that has just been reset."""
        ...

    def step(
        self, histories: Sequence[Sequence[Observation]], states: Sequence[SessionState], executed: Sequence[int]
    ) -> tuple[list[ActionChunk], list[SessionState]]:
        """One chunk for each of B sessions.

        Args:
            histories: `history` observations a session, oldest first.
            states: as returned by `initial_state` or by the last `step`.
            executed: by how many control steps each robot moved on since the observation of its last chunk, as
                `Session.act` defines it.
        """
        ...


class Executor(Protocol):
    """Turns chunks into one action a control step. Times are of the same clock as the chunks' `start_s`, in s."""

    def reset(self) -> None:
        """Forget every chunk: an episode begins."""
        ...

    def steps_between_chunks(self, action_steps: int) -> int:
        """Control steps from one request to the next, of a policy that hands out `action_steps` and is never late."""
        ...

    def needs_chunk(self, time_s: float) -> bool:
        """Whether the next chunk is to be asked for, with the observation of this time."""
        ...

    def executed(self, time_s: float) -> int | None:
        """What `Session.act` is to be told when the next chunk is asked for now; None before the first."""
        ...

    def take(self, chunk: ActionChunk) -> None:
        """Have a new chunk, whenever it begins.

        Raises:
            UserError: its actions have another size than the spec says, or are not finite, or it has no times.
            MisfitError: it lacks the predictions that this executor needs.
        """
        ...

    def has_action(self, time_s: float) -> bool:
        """Whether there is an action for this control step; without one the robot has to stand still."""
        ...

    def next_action(self, time_s: float) -> np.ndarray:
        """The action of this control step, within the spec's bounds, float32 [A]. Called once a step.

        Raises:
            UserError: there is none.
        """
        ...


class TimedPolicy(Policy, Protocol):
    """A policy whose parts can be timed apart."""

    @property
    def device(self) -> Any: ...

    @property
    def calls_per_observation(self) -> int: ...

    def timed_parts(self, history: Sequence[Observation]) -> dict[str, Callable[[], object]]:
        """ "encode": the observation encoder alone; "network_call": one bare forward pass at batch 1."""
        ...


class DemonstrationStore(Protocol):
    """Demonstrations of one task, for reading, whatever format they are kept in."""

    path: Path
    spec: TaskSpec
    provenance: Json

    @property
    def rows(self) -> Sequence[Any]:
        """One for each episode, in their order; each has its `seed`, the number that it is called by."""
        ...

    @property
    def dropped(self) -> Sequence[Any]:
        """Attempts that were not kept."""
        ...

    @property
    def expected_episodes(self) -> int: ...

    @property
    def is_complete(self) -> bool: ...

    @property
    def total_steps(self) -> int: ...

    @property
    def episode_ends(self) -> np.ndarray:
        """Row after the last of each episode, cumulative: int64 [episodes]."""
        ...

    def __len__(self) -> int:
        """Number of episodes."""
        ...

    def episode(self, index: int) -> Episode:
        """One episode by its place in `rows`."""
        ...

    def read(self, key: str) -> np.ndarray:
        """A whole array in memory, [total_steps ...]: "state/<name>", "action", "image/<camera>", ..."""
        ...

    def read_rows(self, key: str, start: int, end: int) -> np.ndarray:
        """Rows `start` to `end` (exclusive) of an array."""
        ...

    def read_at(self, key: str, rows: np.ndarray) -> np.ndarray:
        """The rows of an array at these places, int64 [n], at least one, rising."""
        ...

    def statistics(self, keys: Iterable[str]) -> dict[str, Statistics]:
        """Of each element of these arrays."""
        ...

    def content_hash(self) -> str:
        """Of what the data are, however they are stored."""
        ...


class WindowSource(Protocol):
    """Where training windows come from."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> Window:
        """The windows with these indices, int64 [B]."""
        ...

    def epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        """A permutation of all indices, a pure function of its arguments."""
        ...

    def batches(
        self, seed: int, batch_size: int, start_step: int = 0, *, rank: int = 0, world: int = 1
    ) -> Iterator[np.ndarray]:
        """This process's indices of the global batches from `start_step` on; each window once an epoch."""
        ...
