"""How fast a task runs beside the environment that it is made of, as that environment's own users run it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from embodied.benchmarks.answering_process import AnsweringProcess
from embodied.errors import UserError
from embodied.process_pool import one_thread_a_process
from embodied.protocols import Task
from embodied.types import Json


class BareEnvironment(Protocol):
    """An environment without anything of ours around it."""

    def reset(self, seed: int) -> object: ...

    def step(self, action: np.ndarray) -> object: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SimulationBenchmark:
    """How much to measure."""

    blocks: int  # of steps, of each of the two in turn
    block_steps: int  # control steps of a block; no reset within one
    seed: int

    def __post_init__(self) -> None:
        for name in ("blocks", "block_steps"):
            if getattr(self, name) < 1:
                raise UserError(expected=f"{name} of at least 1", found=str(getattr(self, name)), remedy="raise it")


class BareProcess:
    """A bare environment in a process of its own, where it may choose its own OpenGL back end and threads."""

    def __init__(self, make_environment: Callable[[], BareEnvironment]) -> None:
        """`make_environment` must be importable, since the process is spawned."""
        make = functools.partial(_TimedBlocks, make_environment)
        self._process = AnsweringProcess(make, _failed, starting=one_thread_a_process())

    def seconds(self, seed: int, actions: np.ndarray) -> tuple[float, float]:
        """How long a reset took, and after it the steps with these actions.

        Raises:
            UserError: the environment could not be made or run.
        """
        return self._process.ask(seed, actions)

    def close(self) -> None:
        self._process.close()


def _failed(reason: str) -> UserError:
    return UserError(
        expected="the bare environment to run",
        found=reason,
        remedy="leave its task out of tasks=, or its cameras with cameras=false",
    )


class _TimedBlocks:
    """Of a bare environment, in its process."""

    def __init__(self, make_environment: Callable[[], BareEnvironment]) -> None:
        self._environment = make_environment()

    def __call__(self, seed: int, actions: np.ndarray) -> tuple[float, float]:
        begun = time.perf_counter()
        self._environment.reset(seed)
        reset = time.perf_counter() - begun
        return reset, _seconds(self._environment.step, actions)


def measure(task: Task, bare: BareProcess, settings: SimulationBenchmark, report: Callable[[], None]) -> Json:
    """Control steps a second of both, with the same random actions.

    The two take turns, block by block, so that whatever slows the machine slows both; the ratio is the median over
    the pairs of blocks. A first block of each warms up and does not count. Resets are timed apart.

    Args:
        report: called after each pair of blocks.

    Raises:
        UserError: a block longer than the task's horizon or an episode that ends before, or a bare environment that
            fails.
    """
    spec = task.spec
    if settings.block_steps > spec.horizon:
        raise UserError(
            expected=f"block_steps of at most {spec.horizon}, the horizon of {spec.task}",
            found=str(settings.block_steps),
            remedy="lower block_steps and raise blocks",
        )
    shape = (settings.block_steps, spec.action.size)
    actions = np.random.default_rng(settings.seed).uniform(spec.action.low, spec.action.high, shape)
    actions = actions.astype(np.float32)
    rates, bare_rates, resets, bare_resets = [], [], [], []
    for block in range(settings.blocks + 1):
        begun = time.perf_counter()
        task.reset(settings.seed + block)
        resets.append(time.perf_counter() - begun)
        rates.append(settings.block_steps / _task_seconds(task, actions))
        bare_reset, bare_steps = bare.seconds(settings.seed + block, actions)
        bare_resets.append(bare_reset)
        bare_rates.append(settings.block_steps / bare_steps)
        report()
    ours, theirs = np.array(rates[1:]), np.array(bare_rates[1:])
    return {
        "task": spec.task,
        "cameras": [camera.name for camera in spec.cameras],
        "steps_per_s": _quartiles(ours),
        "bare_steps_per_s": _quartiles(theirs),
        "ratio": _quartiles(ours / theirs),
        "reset_s": float(np.median(resets[1:])),
        "bare_reset_s": float(np.median(bare_resets[1:])),
    }


def _seconds(step: Callable[[np.ndarray], object], actions: np.ndarray) -> float:
    begun = time.perf_counter()
    for action in actions:
        step(action)
    return time.perf_counter() - begun


def _task_seconds(task: Task, actions: np.ndarray) -> float:
    try:
        return _seconds(task.step, actions)
    except UserError as error:  # a task refuses steps after an episode's end
        raise UserError(
            expected=f"episodes of {task.spec.task} that last for a block of {len(actions)} steps",
            found=error.found,
            remedy="lower block_steps and raise blocks",
        ) from error


def _quartiles(values: np.ndarray) -> Json:
    low, median, high = (float(value) for value in np.percentile(values, (25, 50, 75)))
    return {"median": median, "q25": low, "q75": high}
